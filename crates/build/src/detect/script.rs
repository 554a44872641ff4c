//! Ruby, PHP and static sites: nothing is compiled.

use super::{Draft, Entry, Given, Language, Refusal, base::Base, dockerfile::Dockerfile};

/// Whether a Gemfile asks for a gem.
fn asks_for(gemfile: &str, gem: &str) -> bool {
    gemfile.lines().any(|line| {
        let rest = line.trim_start().strip_prefix("gem").unwrap_or_default();
        let name = rest.trim_start_matches([' ', '(']);
        [format!("\"{gem}\""), format!("'{gem}'")]
            .iter()
            .any(|quoted| name.starts_with(quoted.as_str()))
    })
}

pub(super) fn ruby(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let gemfile = tree.text("Gemfile");
    let entry = if let Some(entry) = given.procfile() {
        entry
    } else if !tree.has("config.ru") {
        return Err(given.no_entrypoint(Language::Ruby, "add config.ru"));
    } else if asks_for(gemfile, "puma") {
        let line = "exec bundle exec puma --bind tcp://0.0.0.0:\"$PORT\"";
        Entry::shell(line, "there is config.ru, and the Gemfile asks for puma")
    } else if asks_for(gemfile, "rackup") {
        let line = "exec bundle exec rackup --host 0.0.0.0 --port \"$PORT\"";
        Entry::shell(line, "there is config.ru, and the Gemfile asks for rackup")
    } else {
        let missing = "config.ru needs a server; add puma to the Gemfile";
        return Err(given.no_entrypoint(Language::Ruby, missing));
    };
    let mut file = Dockerfile::begin();
    file.last(given.bases.of(Base::Ruby))
        .work_in("/app")
        .env("RACK_ENV=production RAILS_ENV=production RAILS_LOG_TO_STDOUT=1 BUNDLE_WITHOUT=development:test");
    let mut notes = Vec::new();
    if tree.has("Gemfile.lock") {
        file.env("BUNDLE_FROZEN=1").copy(&["Gemfile", "Gemfile.lock"]);
        notes.push("packages by bundler, because of Gemfile.lock".to_owned());
    } else if tree.has("Gemfile") {
        file.copy(&["Gemfile"]);
        notes.push("packages by bundler; there is no Gemfile.lock, so that versions may change".to_owned());
    }
    if tree.has("Gemfile") {
        file.run(&["bundle", "install"]);
    }
    file.copy_all_owned();
    Ok(Draft {
        dockerfile: file,
        entry,
        notes,
        ignore: &[".bundle", "log", "tmp"],
    })
}

pub(super) fn php(given: Given<'_>) -> Draft {
    let tree = given.tree;
    let has_public = tree.has("public/index.php");
    let mut notes = Vec::new();
    let mut file = Dockerfile::begin();
    let has_packages = tree.has("composer.json");
    if has_packages {
        let wanted: Vec<&str> = ["composer.json", "composer.lock"]
            .into_iter()
            .filter(|name| tree.has(name))
            .collect();
        file.stage(given.bases.of(Base::Composer), "packages")
            .work_in("/app")
            .copy(&wanted)
            // Extensions are those of the image that runs it.
            .run(&[
                "composer",
                "install",
                "--no-dev",
                "--no-interaction",
                "--no-scripts",
                "--no-autoloader",
                "--ignore-platform-reqs",
            ])
            .copy_all()
            .run(&["composer", "dump-autoload", "--no-dev", "--optimize", "--no-scripts"]);
        notes.push("packages by composer, because of composer.json".to_owned());
    }
    file.last(given.bases.of(Base::Php)).work_in("/var/www/html");
    if given.web.is_none() {
        file.shell("sed -i 's/80/${PORT}/g' /etc/apache2/ports.conf /etc/apache2/sites-available/000-default.conf");
        if has_public {
            file.shell("sed -i 's!/var/www/html!/var/www/html/public!' /etc/apache2/sites-available/000-default.conf");
        }
    }
    if has_packages {
        file.copy_from_owned("packages", "/app", "./");
    } else {
        file.copy_all_owned();
    }
    let because = if has_public {
        "Apache serves public, because of public/index.php"
    } else {
        "Apache serves the source's root"
    };
    Draft {
        dockerfile: file,
        entry: given
            .procfile()
            .unwrap_or_else(|| Entry::program(&["apache2-foreground"], because)),
        notes,
        ignore: if has_packages { &["vendor"] } else { &[] },
    }
}

pub(super) fn site(given: Given<'_>) -> Draft {
    let mut file = Dockerfile::begin();
    file.last(given.bases.of(Base::Static)).work_in("/srv").copy_all();
    Draft {
        dockerfile: file,
        entry: given.procfile().unwrap_or_else(|| {
            let line = "exec httpd -f -p \"$PORT\" -h /srv";
            Entry::shell(line, "files are served by busybox's httpd, because of index.html")
        }),
        notes: Vec::new(),
        ignore: &["Procfile"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_gemfile_asks_for() {
        let text = "source 'x'\ngem 'rails', '~> 8'\n  gem(\"puma\")\n# gem 'rackup'\n";
        assert!(asks_for(text, "rails") && asks_for(text, "puma"));
        assert!(!asks_for(text, "rackup") && !asks_for(text, "rail"));
    }
}
