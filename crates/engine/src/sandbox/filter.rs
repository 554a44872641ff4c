//! From the system call rules of an OCI configuration to a program that the kernel runs at each call.
//!
//! The kernel's filter is a program without loops that looks at the number of the call and its arguments. Ours first
//! halves its way to the number, then decides: numbers that lie together and are treated alike are one case.

use std::{collections::BTreeMap, str::FromStr as _};

use serde::Deserialize;
use syscalls::Sysno;

/// One instruction as a number: code, two jumps, operand.
pub(crate) type Instruction = u64;

// Of linux/bpf_common.h: what an instruction does.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

// Of linux/seccomp.h: where the call's data are, and what becomes of it.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERROR: u32 = 0x0005_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Calls of the 32-bit-pointer form of `x86_64` have this bit in their number.
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: u32 = 0x4000_0000;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: (&str, u32) = ("SCMP_ARCH_X86_64", 0xc000_003e);
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: (&str, u32) = ("SCMP_ARCH_AARCH64", 0xc000_00b7);

/// The `linux.seccomp` object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Profile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: u16,
    architectures: Vec<String>,
    syscalls: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: u16,
    #[serde(default)]
    args: Vec<Condition>,
}

/// About one argument.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Condition {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// What becomes of one call: the first case all of whose conditions hold, else the last word.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Treatment {
    cases: Vec<(Vec<Test>, u32)>,
    otherwise: u32,
}

/// Whether an argument, masked, has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    argument: u32,
    mask: u64,
    value: u64,
}

fn verdict(action: &str, errno: u16) -> Result<u32, String> {
    match action {
        "SCMP_ACT_ALLOW" => Ok(ALLOW),
        "SCMP_ACT_ERRNO" => Ok(ERROR | u32::from(errno)),
        "SCMP_ACT_KILL_PROCESS" => Ok(KILL_PROCESS),
        _ => Err(format!("a system call filter with {action}")),
    }
}

fn test(condition: &Condition) -> Result<Test, String> {
    let (mask, value) = match condition.op.as_str() {
        "SCMP_CMP_EQ" => (u64::MAX, condition.value),
        "SCMP_CMP_MASKED_EQ" => (condition.value, condition.value_two),
        op => return Err(format!("a system call filter with {op}")),
    };
    if condition.index > 5 {
        return Err(format!("a system call filter about argument {}", condition.index));
    }
    Ok(Test {
        argument: condition.index,
        mask,
        value,
    })
}

/// By number. Names that this machine's architecture lacks are left out.
fn treatments(profile: &Profile) -> Result<BTreeMap<u32, Treatment>, String> {
    let otherwise = verdict(&profile.default_action, profile.default_errno_ret)?;
    let mut all: BTreeMap<u32, Treatment> = BTreeMap::new();
    for rule in &profile.syscalls {
        let action = verdict(&rule.action, rule.errno_ret)?;
        let tests = rule.args.iter().map(test).collect::<Result<Vec<_>, _>>()?;
        for name in &rule.names {
            let Ok(call) = Sysno::from_str(name) else { continue };
            let number = u32::try_from(call.id()).map_err(|_| format!("the system call {name}"))?;
            let treatment = all.entry(number).or_insert_with(|| Treatment {
                cases: Vec::new(),
                otherwise,
            });
            if tests.is_empty() {
                treatment.otherwise = action;
            } else {
                treatment.cases.push((tests.clone(), action));
            }
        }
    }
    Ok(all)
}

fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> Instruction {
    u64::from(code) | u64::from(if_true) << 16 | u64::from(if_false) << 24 | u64::from(operand) << 32
}

/// The parts of an instruction, as the kernel wants them.
pub(crate) fn parts(instruction: Instruction) -> (u16, u8, u8, u32) {
    let [low, high, if_true, if_false, operand @ ..] = instruction.to_le_bytes();
    (
        u16::from_le_bytes([low, high]),
        if_true,
        if_false,
        u32::from_le_bytes(operand),
    )
}

fn statement(code: u16, operand: u32) -> Instruction {
    instruction(code, 0, 0, operand)
}

fn halves(number: u64) -> [u32; 2] {
    [number, number >> 32].map(|half| u32::try_from(half & 0xffff_ffff).expect("32 bits"))
}

/// Ends with a return.
fn treat(treatment: &Treatment) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (tests, action) in &treatment.cases {
        let mut checks = Vec::new();
        for test in tests {
            let at = ARGUMENTS_AT + 8 * test.argument;
            let halves = halves(test.mask).into_iter().zip(halves(test.value));
            for ((mask, value), at) in halves.zip([at, at + 4]) {
                let mut check = vec![statement(LOAD, at)];
                if mask != u32::MAX {
                    check.push(statement(AND, mask));
                }
                checks.push((check, value));
            }
        }
        // How many instructions follow each comparison up to and with the return.
        let mut block = vec![statement(RETURN, *action)];
        for (check, value) in checks.into_iter().rev() {
            let away = u8::try_from(block.len()).expect("at most six arguments");
            block.insert(0, instruction(IF_EQUAL, 0, away, value));
            block.splice(0..0, check);
        }
        code.extend(block);
    }
    code.push(statement(RETURN, treatment.otherwise));
    code
}

/// Halves its way through cases that begin at ascending numbers, the first of them at zero or below the number sought.
fn search(cases: &[(u32, Treatment)]) -> Result<Vec<Instruction>, String> {
    let [(_, only)] = cases else {
        let (lower, upper) = cases.split_at(cases.len() / 2);
        let (from, _) = upper.first().ok_or("a system call filter without rules")?;
        let low = search(lower)?;
        let away = u8::try_from(low.len()).map_err(|_| "a system call filter that is too long")?;
        let mut code = vec![instruction(IF_AT_LEAST, away, 0, *from)];
        code.extend(low);
        code.extend(search(upper)?);
        return Ok(code);
    };
    Ok(treat(only))
}

/// The program for a profile, or what in the profile is not understood.
pub(crate) fn compile(profile: &Profile) -> Result<Vec<Instruction>, String> {
    let (name, architecture) = ARCHITECTURE;
    if profile.architectures != [name] {
        return Err(format!("a system call filter for {}", profile.architectures.join(", ")));
    }
    let otherwise = Treatment {
        cases: Vec::new(),
        otherwise: verdict(&profile.default_action, profile.default_errno_ret)?,
    };
    let mut cases: Vec<(u32, Treatment)> = vec![(0, otherwise.clone())];
    let mut push = |from: u32, treatment: &Treatment| match cases.last_mut() {
        Some((_, last)) if last == treatment => {}
        Some((at, last)) if *at == from => *last = treatment.clone(),
        _ => cases.push((from, treatment.clone())),
    };
    let all = treatments(profile)?;
    for (number, treatment) in &all {
        push(*number, treatment);
        if !all.contains_key(&(number + 1)) {
            push(number + 1, &otherwise);
        }
    }
    let mut program = vec![
        statement(LOAD, ARCHITECTURE_AT),
        instruction(IF_EQUAL, 1, 0, architecture),
        statement(RETURN, KILL_PROCESS),
        statement(LOAD, NUMBER_AT),
    ];
    #[cfg(target_arch = "x86_64")]
    program.extend([
        instruction(IF_AT_LEAST, 0, 1, OTHER_NUMBERS),
        statement(RETURN, KILL_PROCESS),
    ]);
    program.extend(search(&cases)?);
    // BPF_MAXINSNS.
    if program.len() > 4096 {
        return Err("a system call filter that is too long".to_owned());
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What the kernel would do.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(architecture.to_ne_bytes());
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let (mut at, mut held) = (0, 0_u32);
        loop {
            let (code, if_true, if_false, operand) = parts(program[at]);
            at += 1;
            match code {
                LOAD => {
                    let from = operand as usize;
                    held = u32::from_ne_bytes(data[from..from + 4].try_into().expect("four bytes"));
                }
                AND => held &= operand,
                IF_EQUAL => at += usize::from(if held == operand { if_true } else { if_false }),
                IF_AT_LEAST => at += usize::from(if held >= operand { if_true } else { if_false }),
                RETURN => return operand,
                code => panic!("{code:x}"),
            }
        }
    }

    /// The same, read from the profile rule by rule.
    fn expected(profile: &Value, number: u32, arguments: [u64; 6]) -> u32 {
        let name = Sysno::new(number as usize).map(|call| call.name()).unwrap_or_default();
        for rule in profile["syscalls"].as_array().expect("rules") {
            let named = rule["names"].as_array().expect("names").iter().any(|n| n == name);
            let fits = rule["args"].as_array().is_none_or(|tests| {
                tests.iter().all(|test| {
                    let argument = arguments[usize::try_from(test["index"].as_u64().expect("one")).expect("small")];
                    let value = test["value"].as_u64().expect("a value");
                    match test["op"].as_str() {
                        Some("SCMP_CMP_EQ") => argument == value,
                        Some("SCMP_CMP_MASKED_EQ") => argument & value == test["valueTwo"].as_u64().expect("one"),
                        op => panic!("{op:?}"),
                    }
                })
            });
            if named && fits {
                return match rule["action"].as_str() {
                    Some("SCMP_ACT_ALLOW") => ALLOW,
                    Some("SCMP_ACT_ERRNO") => {
                        ERROR | u32::try_from(rule["errnoRet"].as_u64().unwrap_or(0)).expect("small")
                    }
                    action => panic!("{action:?}"),
                };
            }
        }
        ERROR | u32::try_from(profile["defaultErrnoRet"].as_u64().expect("one")).expect("small")
    }

    #[test]
    fn the_program_does_what_the_profile_says() {
        let text = crate::seccomp::profile();
        let profile: Profile = serde_json::from_value(text.clone()).expect("read");
        let program = compile(&profile).expect("compiled");
        let architecture = ARCHITECTURE.1;
        let words = [
            0,
            1,
            2,
            8,
            10,
            16,
            17,
            0x11,
            0x2_0000,
            0x1000_0000,
            0x1000_0011,
            0x0200_0000,
            0x8000_0000,
            0xffff_ffff,
            0x1_0000_0002,
            u64::MAX,
        ];
        for number in (0..600).chain([0x3fff_ffff]) {
            for first in words {
                let arguments = [first, 0, 7, 0, 0, 0];
                let got = run(&program, architecture, number, arguments);
                assert_eq!(got, expected(&text, number, arguments), "{number} {first:x}");
            }
        }
        assert_eq!(run(&program, 0x4000_0003, 39, [0; 6]), KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(&program, architecture, OTHER_NUMBERS | 0x27, [0; 6]), KILL_PROCESS);
        // Few steps for each call are the point of it.
        assert!(program.len() < 400, "{}", program.len());
    }

    #[test]
    fn every_name_of_the_profile_is_known() {
        let profile: Profile = serde_json::from_value(crate::seccomp::profile()).expect("read");
        let names = profile.syscalls.iter().flat_map(|rule| &rule.names);
        let unknown: Vec<_> = names.filter(|name| Sysno::from_str(name).is_err()).collect();
        // Calls that another architecture has, or that Linux has no more.
        let elsewhere = ["get_kernel_syms"];
        #[cfg(target_arch = "x86_64")]
        assert!(
            unknown.iter().all(|name| elsewhere.contains(&name.as_str())),
            "{unknown:?}"
        );
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (unknown, elsewhere);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let with = |change: fn(&mut Value)| {
            let mut text = crate::seccomp::profile();
            change(&mut text);
            serde_json::from_value::<Profile>(text)
                .map_err(|error| error.to_string())
                .and_then(|profile| compile(&profile))
        };
        assert!(with(|_| ()).is_ok());
        for change in [
            (|text| text["defaultAction"] = json!("SCMP_ACT_TRACE")) as fn(&mut Value),
            |text| text["architectures"] = json!(["SCMP_ARCH_X86"]),
            |text| text["flags"] = json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
            |text| text["syscalls"][2]["args"][0]["op"] = json!("SCMP_CMP_GT"),
            |text| text["syscalls"][2]["args"][0]["index"] = json!(6),
        ] {
            assert!(with(change).is_err());
        }
    }
}
