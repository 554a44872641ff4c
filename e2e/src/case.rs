//! Cases: commands with the transcript they must give.
//!
//! ```text
//! # a remark; blank lines before a command are layout
//! $ SERVICE_URL=$(gcloud run services describe my-api \
//! >   --region=us-central1 --format="value(status.url)")
//! $ curl $SERVICE_URL/nothing
//! what it prints, both streams in order, through the filters
//! ? 22
//! ```
//!
//! `? N` is the exit status; without it the command must succeed. A printed line that begins like one of these has a
//! `\` in front. `UPDATE=1` writes what was printed into the file (with Google's gcloud where a case runs with both:
//! ours is to say the same).

use std::{env, fmt::Write as _, fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{Client, Homerun, Session, filter, session::Output};

/// One command, with the remarks before it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// Of the file, from 1.
    line: usize,
    layout: String,
    command: String,
    output: Output,
}

/// Runs `cases/NAME.txt` against a Homerun of its own, and stops it.
///
/// # Errors
/// What was printed otherwise than written, or what is left of the Homerun.
pub fn run_case(name: &str, client: Client) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("cases/{name}.txt"));
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let (steps, foot) = parse(&text).with_context(|| format!("in {}", path.display()))?;
    let homerun = Homerun::up()?;
    let addresses = homerun.addresses();
    let known = [
        (homerun.root().display().to_string(), "ROOT"),
        (format!(":{}", addresses.http.port()), ":HTTP"),
        (format!(":{}", addresses.https.port()), ":HTTPS"),
        (format!(":{}", addresses.api.port()), ":API"),
    ];
    let mut session = Session::new(&homerun, client)?;
    let mut printed = Vec::new();
    let mut differences = String::new();
    for step in &steps {
        let begun = Instant::now();
        let mut output = session
            .run(&step.command)
            .with_context(|| format!("{name}:{}\n{differences}\nhomerun up:\n{}", step.line, homerun.log()))?;
        output.text = filter(&output.text, &known);
        if output != step.output {
            write!(
                differences,
                "cases/{name}.txt:{} after {:?}\n$ {}\n--- expected\n{}\n+++ printed\n{}\n\n",
                step.line,
                begun.elapsed(),
                step.command,
                body(&step.output),
                body(&output)
            )?;
        }
        printed.push(Step { output, ..step.clone() });
    }
    drop(session);
    let log = homerun.log();
    let stopped = homerun.stop();
    if differences.is_empty() {
        return stopped;
    }
    if client == Client::Google && env::var_os("UPDATE").is_some_and(|on| on == "1") {
        fs::write(&path, render(&printed, &foot))?;
        return stopped;
    }
    bail!("{differences}homerun up said:\n{log}\nits end: {stopped:?}")
}

/// The steps, and the layout after the last.
fn parse(text: &str) -> Result<(Vec<Step>, String)> {
    let mut steps: Vec<Step> = Vec::new();
    let mut layout = String::new();
    let mut printed = String::new();
    let mut lines = text.lines().enumerate().peekable();
    let mut ended = true;
    while let Some((number, line)) = lines.next() {
        if let Some(command) = line.strip_prefix("$ ") {
            let mut command = command.to_owned();
            while let Some((_, more)) = lines.next_if(|(_, line)| line.starts_with('>')) {
                command.push('\n');
                command.push_str(more[1..].strip_prefix(' ').unwrap_or(&more[1..]));
            }
            finish(&mut steps, &mut printed, &mut layout);
            steps.push(Step {
                line: number + 1,
                layout: std::mem::take(&mut layout),
                command,
                output: Output {
                    text: String::new(),
                    status: 0,
                },
            });
            ended = false;
        } else if let Some(status) = line.strip_prefix("? ") {
            let step = steps.last_mut().filter(|_| !ended);
            let step = step.with_context(|| format!("line {}: ? without a command", number + 1))?;
            step.output.status = status.trim().parse().context(line.to_owned())?;
            finish(&mut steps, &mut printed, &mut layout);
            ended = true;
        } else if line.starts_with('#') {
            finish(&mut steps, &mut printed, &mut layout);
            layout.push_str(line);
            layout.push('\n');
            ended = true;
        } else if ended {
            ensure!(line.is_empty(), "line {}: no command prints it", number + 1);
            layout.push('\n');
        } else {
            printed.push_str(line.strip_prefix('\\').unwrap_or(line));
            printed.push('\n');
        }
    }
    finish(&mut steps, &mut printed, &mut layout);
    Ok((steps, layout))
}

/// Gives the last step what it printed; blank lines after that are layout of what follows.
fn finish(steps: &mut [Step], printed: &mut String, layout: &mut String) {
    let Some(step) = steps.last_mut() else {
        return;
    };
    if printed.is_empty() {
        return;
    }
    let text = printed.trim_end_matches('\n');
    let ends = printed.len() - text.len();
    let blank = if text.is_empty() { ends } else { ends - 1 };
    layout.push_str(&"\n".repeat(blank));
    text.clone_into(&mut step.output.text);
    printed.clear();
}

fn render(steps: &[Step], foot: &str) -> String {
    let mut text = String::new();
    for step in steps {
        text.push_str(&step.layout);
        for (number, line) in step.command.lines().enumerate() {
            let mark = if number == 0 { "$" } else { ">" };
            text.push_str(format!("{mark} {line}").trim_end());
            text.push('\n');
        }
        text.push_str(&body(&step.output));
    }
    text + foot
}

/// As it stands below its command.
fn body(output: &Output) -> String {
    let mut text = String::new();
    for line in output.text.lines() {
        if ["$ ", "? ", "#", "\\"].iter().any(|mark| line.starts_with(mark)) {
            text.push('\\');
        }
        text.push_str(line);
        text.push('\n');
    }
    if output.status != 0 {
        writeln!(text, "? {}", output.status).expect("a string takes any write");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: &str = "\
# a remark

$ echo \"one
>
>   two\"
one

  two
$ X=1

$ false; echo '# no remark'
\\# no remark
? 1

# another
$ true
";

    #[test]
    fn a_case_is_read_and_written_again() {
        let (steps, foot) = parse(CASE).expect("a case");
        assert_eq!(steps.len(), 4);
        assert_eq!(steps[0].command, "echo \"one\n\n  two\"");
        assert_eq!(steps[0].output.text, "one\n\n  two");
        assert_eq!(steps[1].output.text, "");
        assert_eq!(steps[2].output.text, "# no remark");
        assert_eq!(steps[2].output.status, 1);
        assert_eq!(steps[3].layout, "\n# another\n");
        assert_eq!(steps[3].line, 16);
        assert_eq!(render(&steps, &foot), CASE);
    }

    #[test]
    fn what_no_command_prints_is_refused() {
        assert!(parse("text\n").is_err());
        assert!(parse("? 1\n").is_err());
        assert!(parse("$ true\n? 0\ntext\n").is_err());
    }
}
