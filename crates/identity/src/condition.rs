//! Conditions of policies: expressions of CEL over when a request comes and what it is for.
//!
//! An expression is looked at before it is kept: how long it is, how deep, how many operators of logic it has, and that
//! it uses nothing that could run for long. There are no loops in what is taken, so that an expression takes at most as
//! many steps as it has parts. What fails while it runs does not hold.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use cel::common::ast::Expr;
use cel::objects::{Key, Map, Value};
use cel::{Context, Env, IdedExpr, Program};
use model::{BindingCondition, ProjectId, Resource};

/// Longest expression in bytes.
pub const MAX_EXPRESSION: usize = 2048;
/// Most `&&`, `||` and `!` of one expression, as at Google.
const MAX_LOGIC: usize = 12;
/// Deepest nesting of brackets, and most `? :`.
const MAX_DEPTH: usize = 16;
/// Expressions that are kept read.
const MAX_READ: usize = 256;

/// What may be called, operators included. None of them loops over what the caller chose.
const FUNCTIONS: &[&str] = &[
    "_?_:_",
    "_&&_",
    "_||_",
    "!_",
    "_-_",
    "_+_",
    "-_",
    "_==_",
    "_!=_",
    "_>=_",
    "_<=_",
    "_>_",
    "_<_",
    "@in",
    "startsWith",
    "endsWith",
    "contains",
    "timestamp",
    "duration",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
];
/// What an expression may speak of.
const ATTRIBUTES: &[(&str, &[&str])] = &[("request", &["time"]), ("resource", &["name", "type", "service"])];

/// The language as it is written down, made once: it takes longer than any expression does.
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Why an expression is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    #[error("the expression is empty")]
    Empty,
    #[error("the expression has {found} bytes, at most {MAX_EXPRESSION} are allowed")]
    TooLong { found: usize },
    #[error("the expression nests deeper than {MAX_DEPTH} brackets or choices")]
    TooDeep,
    #[error("the expression has {found} operators of logic, at most {MAX_LOGIC} are allowed")]
    TooMuchLogic { found: usize },
    #[error("the expression cannot be read: {why}")]
    Unreadable { why: String },
    #[error("the expression calls {name}, which is not served in conditions")]
    Function { name: String },
    #[error("the expression names {name}: request.time, resource.name, resource.type and resource.service are known")]
    Attribute { name: String },
    #[error("the expression holds {what}, which is not served in conditions")]
    Part { what: &'static str },
    #[error("the expression does not say true or false: {why}")]
    NotBoolean { why: String },
}

/// Reads conditions, and says whether they hold. Keeps a number of them read.
#[derive(Default)]
pub struct Conditions {
    /// Exchanged whole, since requests to every service look in here.
    read: ArcSwap<HashMap<String, Arc<Program>>>,
}

impl Conditions {
    /// Whether the expression can be a condition.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(expression: &str) -> Result<(), ConditionError> {
        let program = read(expression)?;
        // It is run once on made-up attributes, so that one that can never say yes or no is refused when it is set.
        let example = (
            "projects/p/locations/l/services/s",
            Resource::Project.kind(),
            Resource::Project.service(),
        );
        run(&program, example, 0).map(drop)
    }

    /// Whether the condition holds at `now` (Unix seconds) for the resource. One that cannot be read or run does not.
    pub fn hold(&self, condition: &BindingCondition, resource: &Resource, project: &ProjectId, now: u64) -> bool {
        let Some(program) = self.program(&condition.expression) else {
            return false;
        };
        let name = resource.name(project);
        run(&program, (&name, resource.kind(), resource.service()), now).unwrap_or(false)
    }

    fn program(&self, expression: &str) -> Option<Arc<Program>> {
        let known = self.read.load();
        if let Some(program) = known.get(expression) {
            return Some(program.clone());
        }
        let program = Arc::new(read(expression).ok()?);
        let mut more = if known.len() < MAX_READ {
            HashMap::clone(&known)
        } else {
            HashMap::new()
        };
        more.insert(expression.to_owned(), program.clone());
        // What another thread put there meanwhile is read once more, no harm.
        self.read.store(Arc::new(more));
        Some(program)
    }
}

impl std::fmt::Debug for Conditions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conditions").finish_non_exhaustive()
    }
}

fn read(expression: &str) -> Result<Program, ConditionError> {
    if expression.trim().is_empty() {
        return Err(ConditionError::Empty);
    }
    if expression.len() > MAX_EXPRESSION {
        return Err(ConditionError::TooLong {
            found: expression.len(),
        });
    }
    // before the parser, which goes down as deep as the text does
    let mut depth = 0_usize;
    let mut choices = 0;
    for byte in expression.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'?' => choices += 1,
            _ => {}
        }
        if depth > MAX_DEPTH || choices > MAX_DEPTH {
            return Err(ConditionError::TooDeep);
        }
    }
    let program = LANGUAGE
        .compile(expression)
        .map_err(|error| ConditionError::Unreadable {
            why: error.to_string().lines().next().unwrap_or_default().to_owned(),
        })?;
    let mut logic = 0;
    admit(program.expression(), &mut logic)?;
    if logic > MAX_LOGIC {
        return Err(ConditionError::TooMuchLogic { found: logic });
    }
    Ok(program)
}

/// Whether everything in it may be in a condition; counts the operators of logic.
fn admit(part: &IdedExpr, logic: &mut usize) -> Result<(), ConditionError> {
    let refused = |what| Err(ConditionError::Part { what });
    match &part.expr {
        Expr::Literal(_) => Ok(()),
        Expr::Call(call) => {
            if !FUNCTIONS.contains(&call.func_name.as_str()) {
                return Err(ConditionError::Function {
                    name: call.func_name.clone(),
                });
            }
            *logic += usize::from(matches!(call.func_name.as_str(), "_&&_" | "_||_" | "!_"));
            call.target.iter().try_for_each(|target| admit(target, logic))?;
            call.args.iter().try_for_each(|argument| admit(argument, logic))
        }
        Expr::List(list) => list.elements.iter().try_for_each(|element| admit(element, logic)),
        Expr::Select(select) => {
            let Expr::Ident(of) = &select.operand.expr else {
                return refused("a field of something that is no attribute");
            };
            let known = ATTRIBUTES
                .iter()
                .any(|(name, fields)| name == of && fields.contains(&select.field.as_str()));
            if known {
                Ok(())
            } else {
                Err(ConditionError::Attribute {
                    name: format!("{of}.{}", select.field),
                })
            }
        }
        Expr::Ident(name) => Err(ConditionError::Attribute { name: name.clone() }),
        Expr::Comprehension(_) => refused("a loop (all, exists, map, filter)"),
        Expr::Map(_) => refused("a map"),
        Expr::Struct(_) => refused("a message"),
        Expr::Unspecified => refused("an empty part"),
    }
}

fn run(program: &Program, resource: (&str, &str, &str), now: u64) -> Result<bool, ConditionError> {
    let failed = |why: String| ConditionError::NotBoolean { why };
    let seconds = i64::try_from(now).map_err(|_| failed("the time is beyond all calendars".to_owned()))?;
    let time = chrono::DateTime::from_timestamp(seconds, 0)
        .ok_or_else(|| failed("the time is beyond all calendars".to_owned()))?
        .fixed_offset();
    let map = |fields: Vec<(&str, Value)>| {
        let fields: HashMap<Key, Value> = fields
            .into_iter()
            .map(|(name, value)| (Key::from(name), value))
            .collect();
        Value::Map(Map { map: Arc::new(fields) })
    };
    let (name, kind, service) = resource;
    let mut context = Context::with_env(Arc::clone(&LANGUAGE));
    context.add_variable_from_value("request", map(vec![("time", Value::Timestamp(time))]));
    context.add_variable_from_value(
        "resource",
        map(vec![
            ("name", Value::from(name)),
            ("type", Value::from(kind)),
            ("service", Value::from(service)),
        ]),
    );
    match program.execute(&context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(_) => Err(failed("it is of another type".to_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use model::{Region, ServiceKey, ServiceName};

    use super::*;

    /// 2027-01-15T08:00:00Z, a Friday.
    const NOW: u64 = 1_800_000_000;

    fn project() -> ProjectId {
        ProjectId::parse("my-project").expect("an id")
    }

    fn holds(expression: &str) -> bool {
        let condition = BindingCondition {
            expression: expression.to_owned(),
            title: "t".to_owned(),
            description: String::new(),
        };
        let service = Resource::Service(ServiceKey {
            region: Region::parse("us-central1").expect("a region"),
            name: ServiceName::parse("my-api").expect("a name"),
        });
        let conditions = Conditions::default();
        let once = conditions.hold(&condition, &service, &project(), NOW);
        assert_eq!(conditions.hold(&condition, &service, &project(), NOW), once, "as kept");
        once
    }

    #[test]
    fn what_holds() {
        for (expression, expected) in [
            ("true", true),
            ("request.time < timestamp('2027-01-15T08:00:01Z')", true),
            ("request.time < timestamp('2027-01-15T08:00:00Z')", false),
            ("request.time.getHours('Europe/Berlin') == 9", true),
            ("request.time.getDayOfWeek() in [1, 2, 3, 4, 5]", true),
            ("request.time.getFullYear() == 2026", false),
            (
                "request.time > timestamp('2027-01-01T00:00:00Z') + duration('100h')",
                true,
            ),
            (
                "resource.name == 'projects/my-project/locations/us-central1/services/my-api'",
                true,
            ),
            (
                "resource.name.startsWith('projects/my-project/locations/us-central1/services/my-')",
                true,
            ),
            ("resource.name.endsWith('/other')", false),
            (
                "resource.type == 'run.googleapis.com/Service' && resource.service == 'run.googleapis.com'",
                true,
            ),
            ("!(resource.type == 'iam.googleapis.com/ServiceAccount')", true),
        ] {
            assert_eq!(Conditions::check(expression), Ok(()), "{expression}");
            assert_eq!(holds(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_taken() {
        let long = format!("resource.name == '{}'", "a".repeat(MAX_EXPRESSION));
        let deep = format!("{}true{}", "(".repeat(17), ")".repeat(17));
        let choices = "true ? ".repeat(17) + "true" + &" : false".repeat(17);
        let logic = vec!["true"; 14].join(" && ");
        for (expression, word) in [
            ("", "empty"),
            ("  ", "empty"),
            (&*long, "2048"),
            (&*deep, "deeper"),
            (&*choices, "deeper"),
            (&*logic, "13 operators"),
            ("true &&", "cannot be read"),
            ("request.time <", "cannot be read"),
            ("resource.name.matches('(a+)+')", "matches"),
            ("resource.name.size() > 3", "size"),
            ("resource.matchTag('a/b', 'c')", "matchTag"),
            ("[1, 2].all(x, x > 0)", "a loop"),
            ("[1].map(x, [1].map(y, [1].map(z, z))) == []", "a loop"),
            ("{'a': 1} == {}", "a map"),
            ("request.auth == 1", "request.auth"),
            ("resource.labels == 1", "resource.labels"),
            ("api.getAttribute('x', '') == ''", "getAttribute"),
            ("principal == 'a'", "principal"),
            ("1 + 1", "true or false"),
            ("resource.name", "true or false"),
            ("timestamp('soon') > request.time", "true or false"),
            ("resource.name > 3", "true or false"),
        ] {
            let refused = Conditions::check(expression).expect_err(expression).to_string();
            assert!(refused.contains(word), "{expression}: {refused}");
            assert!(!holds(expression), "{expression}");
        }
    }

    /// No text makes it panic, and none takes long.
    #[test]
    fn nonsense_is_refused() {
        let parts = [
            "(", ")", "[", "]", "{", "}", "!", "-", "?", ":", "'", "\"", "a", ".", "1", "\\", "&&", "é", "\n", "\0",
            "r'", "//", "@in", "in",
        ];
        let mut state = 7_u32;
        for _ in 0..500 {
            let text: String = (0..24)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    parts[usize::try_from(state >> 16).expect("small") % parts.len()]
                })
                .collect();
            // what it says does not matter
            let _ = Conditions::check(&text);
        }
        assert!(Conditions::check(&"!".repeat(2000)).is_err());
        assert!(Conditions::check(&"-".repeat(2000)).is_err());
    }
}
