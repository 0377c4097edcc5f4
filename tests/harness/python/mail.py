"""A mail sink by aiosmtpd. While a file of this name is in the directory that it is given, it is:

busy: has no time for anybody; full: has no room for mail; lame: cannot even do nothing.
"""

import os

from aiosmtpd.handlers import Sink


class MoodySink(Sink):
    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    @classmethod
    def from_cli(cls, parser, *arguments):
        return cls(*arguments)

    def has(self, flag):
        return os.path.exists(os.path.join(self.directory, flag))

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return ["421 too busy"] if self.has("busy") else responses

    async def handle_MAIL(self, server, session, envelope, address, options):
        if self.has("full"):
            return "452 no room for mail"
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_NOOP(self, server, session, envelope, argument):
        return "451 not today" if self.has("lame") else "250 OK"
