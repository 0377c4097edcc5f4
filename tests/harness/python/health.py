"""A gRPC server whose only service is grpc.health.v1.Health.

Arguments: where to listen, and a directory. The service shop.Cart is serving unless a file `sick` is there.
Debian has gRPC, but not the messages of its health protocol; they have one field each.
"""

import os
import sys
from concurrent import futures

import grpc

listen, directory = sys.argv[1:]
# HealthCheckResponse { enum ServingStatus status = 1; }
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def check(request, context):
    # HealthCheckRequest { string service = 1; }: tag, length, name.
    if request[2:] != b"shop.Cart":
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    sick = os.path.exists(os.path.join(directory, "sick"))
    return NOT_SERVING if sick else SERVING


server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
methods = {"Check": grpc.unary_unary_rpc_method_handler(check)}
handler = grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
server.add_generic_rpc_handlers((handler,))
server.add_insecure_port(listen)
server.start()
server.wait_for_termination()
