//! Says what each of these devices can do:
//!
//! ```text
//! cargo run -p dpdk --example devices -- net_null0 net_af_packet0,iface=lo 0000:03:00.0
//! ```

use std::process::ExitCode;

use dpdk::{Eal, Error, Port};

fn main() -> ExitCode {
    let devices: Vec<String> = std::env::args().skip(1).collect();
    let args =
        "--no-huge --no-shconf --no-telemetry -m 64 -l 0 --log-level=*:error --file-prefix=rvs-devices";
    let mut args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    // Left to itself, EAL takes every PCI device that a driver of its knows.
    let pci: Vec<&String> =
        devices.iter().filter(|device| device.contains(':') && !device.contains('=')).collect();
    args.extend(pci.iter().flat_map(|address| ["-a".to_owned(), address.to_string()]));
    args.extend(pci.is_empty().then(|| "--no-pci".to_owned()));
    let eal = match Eal::init(&args) {
        Ok(eal) => eal,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", Eal::version());
    let mut code = ExitCode::SUCCESS;
    for device in devices {
        if let Err(error) = describe(&eal, &device) {
            eprintln!("{error}");
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn describe(eal: &Eal, device: &str) -> Result<(), Error> {
    eal.probe(device)?;
    let name = device.split(',').next().unwrap_or(device);
    let port = Port::by_name(eal, name)?;
    println!("{name}: {:#x?}", port.info()?);
    port.close()
}
