//! The socket: whose it is, who may open it, what becomes of it.

use std::os::unix::fs::PermissionsExt;

use super::*;

async fn refused(path: &Path) -> String {
    match bind(path, None).await {
        Ok(_) => panic!("{} was bound", path.display()),
        Err(error) => format!("{error:#}").replace(&path.display().to_string(), "PATH"),
    }
}

#[tokio::test]
async fn the_socket_is_private_and_goes_with_the_server() {
    let router = router(1).await;
    let mode = std::fs::metadata(&router.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    router.server.abort();
    assert!(router.server.await.unwrap_err().is_cancelled());
    assert!(!router.path.exists());
}

#[tokio::test]
async fn the_socket_belongs_to_a_group() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    let Err(error) = bind(&path, Some("no-such-group")).await else { panic!("bound") };
    let expected =
        "admin.group: this machine has no group \"no-such-group\"; expected one that `getent group` lists";
    assert_eq!(error.to_string(), expected);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root gives a socket to another group");
        return;
    }
    let _socket = bind(&path, Some("daemon")).await.unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    assert_eq!((metadata.gid(), metadata.mode() & 0o777), (group.gid.as_raw(), 0o660));
}

#[tokio::test]
async fn a_live_socket_is_left_alone() {
    let router = router(1).await;
    assert_eq!(
        refused(&router.path).await,
        "another rvs answers at PATH; stop it first, or give this one another admin.socket"
    );
    router.client().services().await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let socket = bind(&path, None).await.unwrap();
    drop(socket);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(
        refused(&path).await,
        "PATH exists and is not a socket; expected none, or that of an earlier rvs"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn a_successor_keeps_its_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    let first = bind(&path, None).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = bind(&path, None).await.unwrap();
    drop(first);
    assert!(path.exists());
    drop(second);
    assert!(!path.exists());
}

#[tokio::test]
async fn nobody_there() {
    let error = Client::new(Path::new("/nowhere/rvs.sock")).services().await.unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "cannot reach rvs at /nowhere/rvs.sock (is it running? -s names another socket): \
         No such file or directory (os error 2)"
    );
}
