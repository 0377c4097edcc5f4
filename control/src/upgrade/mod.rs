//! `rvs upgrade`: a running router becomes another program, with the shortest gap that its devices allow.
//!
//! ```text
//!   old program                                                     new program (the same process)
//!   -----------                                                     ------------------------------
//!   asked (admin API, SIGUSR2)
//!   proves the new one: `NEW prove -c FILE`                         reads the file, looks at the machine,
//!     and goes on forwarding; a failure changes nothing             says what it understands
//!   workers stop     <- the gap begins
//!   ports and EAL down
//!   leaves its estate on standard input, becomes NEW (exec)   -->   takes the estate
//!                                                                   EAL, ports, table, snapshot
//!                                                                   workers start  <- the gap ends
//! ```
//!
//! exec(2) keeps the process: its number, which a service manager knows, its environment, its limits. What makes up the
//! gap is to give up the devices and to open them again, so nothing that can be done before or after is done in it.
//!
//! The estate ([`Estate`]) is what the new program could not find again: descriptors of the twins, which therefore stay in
//! Linux with all that is on them, those of the admin API's listeners, on which who connects waits, and what is
//! known of them. Descriptors go by a socket (`SCM_RIGHTS`) on standard input, so that they arrive with an owner,
//! and are closed by Linux if nobody takes them: a new program that dies on its way leaves no twin behind.
//! Everything else is closed by exec.
//!
//! The old program itself is among them. If the new one cannot start though it has proven itself (EAL or a device refuses it),
//! the process becomes the old one again, with the same estate ([`HandOver::back`]).
//!
//! A process that has given up capabilities cannot have them back. It hands on those that it has kept, and they are enough
//! to start again: its devices are those that it had.

mod desk;
mod estate;
mod gap;
mod hand_over;
mod listeners;
mod proof;
mod twins;

pub use self::desk::{Desk, Order};
pub use self::estate::{Estate, Inheritance, Item, Knowledge, OldTwin};
pub use self::gap::Gap;
pub use self::hand_over::{HandOver, heed_signals, hold_signals};
pub use self::listeners::listen;
pub use self::proof::Proof;
pub use self::twins::take_over;
