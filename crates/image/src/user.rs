//! Who an image's process runs as. Images name users in words that only their own `/etc/passwd` and `/etc/group`
//! explain; these are read from the layers themselves, nothing is mounted.

use std::io::Read;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::merged;
use crate::unpack::MAX_OWNER;

/// Longest `/etc/passwd` or `/etc/group` in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// The ids of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, sorted. Empty where the image named a group itself.
    pub groups: Vec<u32>,
    /// The user's own directory; empty where the image does not say.
    pub home: String,
}

/// Why an image's user is nobody.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("user {text:?}: id {id} is above {MAX_OWNER}")]
    Id { text: String, id: u64 },
    #[error("user {text:?}: the image has no group {group:?}")]
    Group { text: String, group: String },
    #[error("cannot read {path} of the image")]
    Read {
        path: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} of the image is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge { path: &'static str },
}

/// Finds the user that `text` (`user[:group]`, names or numbers, empty for root) means in the stack of `layers`, lowest
/// first. A user name that the image does not know is root: Cloud Run's rule. An unknown group name is refused.
pub fn user(layers: &[PathBuf], text: &str) -> Result<User, UserError> {
    let root = merged::root(layers).map_err(|errno| read_error("/", errno))?;
    let passwd = read(&root, "/etc/passwd")?;
    let group = read(&root, "/etc/group")?;
    find(&passwd, &group, text)
}

fn read_error(path: &'static str, errno: Errno) -> UserError {
    UserError::Read {
        path,
        source: errno.into(),
    }
}

fn read(root: &merged::Merged, path: &'static str) -> Result<String, UserError> {
    let Some(file) = merged::open_file(root, path).map_err(|errno| read_error(path, errno))? else {
        return Ok(String::new());
    };
    let mut content = Vec::new();
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content);
    read.map_err(|source| UserError::Read { path, source })?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(UserError::TooLarge { path });
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn find(passwd: &str, group: &str, text: &str) -> Result<User, UserError> {
    let id = |field: &str| -> Result<Option<u32>, UserError> {
        if field.is_empty() || !field.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(None);
        }
        let id = field.parse::<u64>().unwrap_or(u64::MAX);
        match u32::try_from(id) {
            Ok(small) if id <= MAX_OWNER => Ok(Some(small)),
            Ok(_) | Err(_) => Err(UserError::Id {
                text: text.to_owned(),
                id,
            }),
        }
    };
    let (user_text, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user_text = if user_text.is_empty() { "0" } else { user_text };

    // name:password:uid:gid:...
    let accounts = || {
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| fields.len() >= 4)
    };
    let wanted = id(user_text)?;
    let account = accounts()
        .find(|fields| fields[0] == user_text)
        .or_else(|| accounts().find(|fields| wanted.is_some() && fields[2].parse().ok() == wanted));
    let (name, uid, mut gid) = match (&account, wanted) {
        (Some(fields), _) => (
            Some(fields[0]),
            id(fields[2])?.unwrap_or(0),
            id(fields[3])?.unwrap_or(0),
        ),
        (None, Some(uid)) => (None, uid, 0),
        (None, None) => (Some("root"), 0, 0),
    };

    // name:password:gid:member,member
    let groups = || {
        group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|fields| fields.len() >= 3)
    };
    let mut more = Vec::new();
    if let Some(group_text) = group_text {
        let named = groups().find(|fields| fields[0] == group_text);
        gid = match (named, id(group_text)?) {
            (Some(fields), _) => id(fields[2])?.unwrap_or(0),
            (None, Some(gid)) => gid,
            (None, None) => {
                return Err(UserError::Group {
                    text: text.to_owned(),
                    group: group_text.to_owned(),
                });
            }
        };
    } else if let Some(name) = name {
        for fields in groups().filter(|fields| fields.len() >= 4 && fields[3].split(',').any(|member| member == name)) {
            more.extend(id(fields[2])?);
        }
        more.sort_unstable();
        more.dedup();
    }
    let home = account.as_ref().and_then(|fields| fields.get(5));
    Ok(User {
        uid,
        gid,
        groups: more,
        home: home.map_or_else(String::new, |home| (*home).to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbig:x:70000:1::/:/\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nextra:x:2000:app,other\naudio:x:29:app\nwheel:x:10:root\n";

    #[test]
    fn finds_users_as_images_name_them() {
        for (text, uid, gid, groups, home) in [
            ("", 0, 0, vec![10], "/root"),
            ("root", 0, 0, vec![10], "/root"),
            ("0", 0, 0, vec![10], "/root"),
            ("app", 1000, 1001, vec![29, 2000], "/home/app"),
            ("1000", 1000, 1001, vec![29, 2000], "/home/app"),
            ("app:", 1000, 1001, vec![29, 2000], "/home/app"),
            ("app:extra", 1000, 2000, vec![], "/home/app"),
            ("app:7", 1000, 7, vec![], "/home/app"),
            ("1234", 1234, 0, vec![], ""),
            ("1234:5678", 1234, 5678, vec![], ""),
            ("65535:65535", 65535, 65535, vec![], ""),
            ("nobody-here", 0, 0, vec![10], ""),
        ] {
            let found = find(PASSWD, GROUP, text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let home = home.to_owned();
            assert_eq!(found, User { uid, gid, groups, home }, "{text}");
        }
        assert_eq!(find("", "", "app").expect("root"), User::default());
    }

    #[test]
    fn refuses_what_cannot_run() {
        for (text, says) in [
            ("65536", "65536"),
            ("99999999999999999999999", "above 65535"),
            ("big", "70000"),
            ("app:none", "no group \"none\""),
        ] {
            let refused = find(PASSWD, GROUP, text).expect_err(text).to_string();
            assert!(refused.contains(says), "{refused}");
        }
    }
}
