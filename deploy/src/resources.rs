//! Memory and processor time of a process, as Linux counts them.

use std::fs;

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Resident memory now, bytes.
    pub rss: u64,
    /// The most it ever had resident, bytes.
    pub rss_peak: u64,
    /// Processor time in user and kernel mode, seconds; counted in hundredths.
    pub cpu_s: f64,
}

/// The usage of process `pid`; `None` when it is gone or the system has no `/proc`.
pub fn usage(pid: u32) -> Option<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse(&status, &stat, rustix::param::clock_ticks_per_second())
}

fn parse(status: &str, stat: &str, ticks_per_s: u64) -> Option<Usage> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    };
    // The name in parentheses may hold anything, spaces too; fields count from behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Usage {
        rss: field("VmRSS:")? * 1024,
        rss_peak: field("VmHWM:")? * 1024,
        cpu_s: ticks as f64 / ticks_per_s as f64,
    })
}

/// Bytes as megabytes (10^6).
pub fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read_as_it_writes_them() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 99 1 1";
        let usage = parse(status, stat, 100).unwrap();
        assert_eq!(usage, Usage { rss: 1 << 20, rss_peak: 2 << 20, cpu_s: 3.0 });
        assert_eq!(parse("", stat, 100), None);
    }
}
