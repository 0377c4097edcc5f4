//! A user of this machine, as whom a program of the operator's runs.

use nix::unistd;

use super::error::quoted;
use super::raw::Section;

/// Its numbers, looked up when the file is read: a program that starts must wait for no directory service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct User {
    /// As it was typed.
    pub name: String,
    /// Its number.
    pub uid: u32,
    /// The number of its own group. A program has that and no other one.
    pub gid: u32,
}

/// The key `user`.
pub(super) fn read(section: &Section<'_>) -> Option<Option<User>> {
    section.optional("user", |field| field.parse("a user that `getent passwd` lists", find))
}

fn find(name: &str) -> Result<User, String> {
    match unistd::User::from_name(name) {
        Ok(Some(user)) => Ok(User { name: name.to_owned(), uid: user.uid.as_raw(), gid: user.gid.as_raw() }),
        Ok(None) => Err(format!("this machine has no user {}", quoted(name))),
        Err(error) => Err(format!("cannot look for the user {}: {}", quoted(name), error.desc())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_there_and_who_is_not() {
        let root = User { name: "root".to_owned(), uid: 0, gid: 0 };
        assert_eq!(find("root"), Ok(root));
        for (name, shown) in [("no-such-user", "\"no-such-user\""), ("", "\"\"")] {
            assert_eq!(find(name), Err(format!("this machine has no user {shown}")));
        }
        assert!(find("a\0b").is_err());
    }
}
