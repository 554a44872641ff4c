//! How far long work is: bytes on their way to a Homerun, and the steps of a build.
//!
//! On a terminal one line of the stream of errors is drawn again and again and is gone at the end. Elsewhere bytes are
//! told by the lines around them alone, and steps one by one, each once.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use crate::Outside;

/// From one drawing to the next; what ends before the first is not drawn at all.
const PAUSE: Duration = Duration::from_millis(100);
const SPINNER: [&str; 8] = ["⠏", "⠛", "⠹", "⠼", "⠶", "⠧", "⠯", "⠟"];
/// Longest line: it must not wrap, or it could not be drawn over.
const WIDTH: usize = 79;

fn redraw(err: &mut dyn Write, text: &str) {
    let cut: String = text.chars().take(WIDTH).collect();
    // A terminal that went away is no reason to stop.
    drop(write!(err, "\r\x1b[K{cut}").and_then(|()| err.flush()));
}

/// Bytes as people read them.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 3] = ["KiB", "MiB", "GiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // One digit behind the point, rounded down, without floating point.
    let (mut tenths, mut unit) = (count.saturating_mul(10) / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

struct Watched<'f, 'a> {
    from: &'f mut dyn Read,
    err: &'a mut dyn Write,
    what: &'f str,
    length: u64,
    read: u64,
    drawn: Instant,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.read += count as u64;
        if self.drawn.elapsed() >= PAUSE {
            self.drawn = Instant::now();
            let percent = (self.read * 100).checked_div(self.length).unwrap_or(100);
            let text = format!(
                "{} {} of {} ({percent} %)",
                self.what,
                bytes(self.read),
                bytes(self.length)
            );
            redraw(self.err, &text);
        }
        Ok(count)
    }
}

/// Does `act`, which reads `from` to its end, and shows meanwhile how much of `length` bytes was read.
pub(crate) fn of_bytes<T>(
    outside: &mut Outside<'_>,
    what: &str,
    length: u64,
    from: &mut dyn Read,
    act: impl FnOnce(&Outside<'_>, &mut dyn Read) -> T,
) -> T {
    if !outside.err_is_terminal {
        return act(outside, from);
    }
    // `act` sees an outside whose stream of errors leads nowhere: the line has it. A sink takes no room, nothing leaks.
    let mut watched = Watched {
        from,
        err: std::mem::replace(&mut outside.err, Box::leak(Box::new(io::sink()))),
        what,
        length,
        read: 0,
        drawn: Instant::now(),
    };
    let acted = act(outside, &mut watched);
    outside.err = watched.err;
    redraw(outside.err, "");
    acted
}

/// The steps of a build, told by its log.
#[derive(Debug)]
pub(crate) struct Steps {
    /// What of the log has no end of line yet.
    rest: Vec<u8>,
    /// Between these two marks the log says what was found out about a source without a Dockerfile.
    detecting: bool,
    /// From here on the log has words of the source's own steps.
    building: bool,
    /// The newest step, and when it was seen first.
    step: String,
    since: Instant,
    turn: usize,
    /// A line of ours stands on the terminal.
    drawn: bool,
}

impl Steps {
    pub(crate) fn begin() -> Self {
        Self {
            rest: Vec::new(),
            detecting: false,
            building: false,
            step: "waiting for its turn".to_owned(),
            since: Instant::now(),
            turn: 0,
            drawn: false,
        }
    }

    /// More of the log came, or nothing did.
    pub(crate) fn more(&mut self, outside: &mut Outside<'_>, new: &[u8]) {
        self.rest.extend_from_slice(new);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            self.line(outside, line.trim_end());
        }
        if outside.err_is_terminal {
            self.turn += 1;
            let spinner = SPINNER[self.turn % SPINNER.len()];
            let seconds = self.since.elapsed().as_secs();
            // The end of a long step goes, its time stays.
            let time = format!(" ({seconds} s)");
            let step: String = self.step.chars().take(WIDTH - 2 - time.len()).collect();
            redraw(outside.err, &format!("{spinner} {step}{time}"));
            self.drawn = true;
        }
    }

    fn line(&mut self, outside: &mut Outside<'_>, line: &str) {
        match line {
            "DETECT" => self.detecting = true,
            "BUILD" => {
                self.detecting = false;
                self.building = true;
            }
            _ if !self.building && line.starts_with(UNCHANGED) => {
                self.detecting = false;
                self.wipe(outside);
                outside.say(&format!("Nothing was built: {line}"));
            }
            _ if self.detecting => {
                self.wipe(outside);
                outside.say(line);
            }
            _ if is_step(line) => {
                // What a step says may draw on a terminal by itself: none of that gets there.
                self.step = line.chars().filter(|c| !c.is_control()).collect();
                self.since = Instant::now();
                if !outside.err_is_terminal {
                    let step = self.step.clone();
                    outside.say(&step);
                }
            }
            _ => {}
        }
    }

    /// The build has ended.
    pub(crate) fn end(mut self, outside: &mut Outside<'_>) {
        self.wipe(outside);
    }

    fn wipe(&mut self, outside: &mut Outside<'_>) {
        if std::mem::take(&mut self.drawn) {
            redraw(outside.err, "");
        }
    }
}

/// What a build says of a source that was built before.
const UNCHANGED: &str = "unchanged since build ";

/// `STEP 1/2: RUN x`, in builds of several stages after `[1/2] `; or that the image is pushed.
fn is_step(line: &str) -> bool {
    let rest = line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .map_or(line, |(_, rest)| rest);
    rest.starts_with("STEP ") || line.starts_with("===> ") || line == "PUSH" || line.starts_with("waiting for ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outside::tests::outside_with;

    #[test]
    fn bytes_for_people() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1 << 20, "1.0 MiB"),
            (5 << 29, "2.5 GiB"),
            (3 << 40, "3072.0 GiB"),
            (u64::MAX, "1717986918.3 GiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    const LOG: &str = "FETCHSOURCE\nDETECT\ndetected Go: the source has go.mod\n    FROM x\nBUILD\n[1/2] STEP 1/1: FROM \
                       x\nnoise STEP\n[2/2] STEP 1/2: RUN \x1b[31mx\nPUSH\nDONE\n";

    #[test]
    fn steps_are_lines_where_there_is_no_terminal() {
        // However the log is cut, the lines are the same.
        for size in [1, 7, LOG.len()] {
            let said = outside_with(false, |outside| {
                let mut steps = Steps::begin();
                for part in LOG.as_bytes().chunks(size) {
                    steps.more(outside, part);
                }
                steps.end(outside);
            });
            assert_eq!(
                said,
                "detected Go: the source has go.mod\n    FROM x\n[1/2] STEP 1/1: FROM x\n[2/2] STEP 1/2: RUN [31mx\nPUSH\n"
            );
        }
    }

    #[test]
    fn an_unchanged_source_is_told_and_a_step_cannot_tell_it() {
        let said = |log: &str| {
            outside_with(false, |outside| {
                let mut steps = Steps::begin();
                steps.more(outside, log.as_bytes());
                steps.end(outside);
            })
        };
        let line = "unchanged since build x: y@sha256:z";
        let told = format!("Nothing was built: {line}\n");
        assert_eq!(said(&format!("FETCHSOURCE\n{line}\ny:latest: sha256:z\nDONE\n")), told);
        let log = format!("DETECT\nstatic site\n{line}\ny:latest: sha256:z\nDONE\n");
        assert_eq!(said(&log), format!("static site\n{told}"));
        assert_eq!(said(&format!("BUILD\nSTEP 1/1: RUN x\n{line}\n")), "STEP 1/1: RUN x\n");
    }

    #[test]
    fn on_a_terminal_the_newest_step_is_one_line() {
        let said = outside_with(true, |outside| {
            let mut steps = Steps::begin();
            steps.more(outside, LOG.as_bytes());
            let long = format!("STEP 2/2: RUN {}\n", "y".repeat(200));
            steps.more(outside, long.as_bytes());
            steps.end(outside);
        });
        assert!(said.contains("⠛ PUSH (0 s)"), "{said:?}");
        assert!(said.ends_with("\r\x1b[K"), "{said:?}");
        let last = said.rsplit("\r\x1b[K").nth(1).expect("a line");
        assert_eq!(last.chars().count(), WIDTH, "{last:?}");
        assert!(last.ends_with("y (0 s)"), "{last:?}");
        assert!(said.contains("detected Go: the source has go.mod\n"), "{said:?}");
    }

    struct Slow(u64);
    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            std::thread::sleep(PAUSE);
            let count = self.0.min(buffer.len() as u64).min(1024);
            self.0 -= count;
            Ok(usize::try_from(count).expect("small"))
        }
    }

    #[test]
    fn bytes_are_told_on_a_terminal_alone() {
        let read = |terminal| {
            outside_with(terminal, |outside| {
                let mut slow = Slow(2048);
                let all = of_bytes(outside, "Uploading", 2048, &mut slow, |_, from| {
                    let mut all = Vec::new();
                    from.read_to_end(&mut all).map(|_| all.len())
                });
                assert_eq!(all.expect("read"), 2048);
                outside.say("after");
            })
        };
        assert_eq!(read(false), "after\n");
        let said = read(true);
        assert!(said.contains("\r\x1b[KUploading 1.0 KiB of 2.0 KiB (50 %)"), "{said:?}");
        assert!(said.ends_with("\r\x1b[Kafter\n"), "{said:?}");
    }
}
