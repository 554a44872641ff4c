//! A builder of Cloud Native Buildpacks and what its apps run on, as layouts: the stand-in for a lifecycle
//! (`e2e/lifecycle`), and buildpacks that are scripts.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::Result;
use serde_json::json;

use crate::{
    Layout,
    layout::{add_libraries, add_program, write_base},
};

const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\ncnb:x:1000:1001:cnb:/home/cnb:/bin/sh\n";

/// Takes sources with `index.html`, and serves them.
const DETECT: &str = "#!/bin/sh
[ -e torn ] && exit 3
[ -e index.html ] || exit 100
";

/// Makes one layer, with a program that serves what is in the app's directory.
const BUILD: &str = r#"#!/bin/sh
set -e
layers=$1
echo "built by $(id -u):$(id -g) in $PWD, colour ${COLOR:-none}"
ls
[ -e script ] && sh ./script
[ -e $layers/server/stamp ] && echo "layer of an earlier build: $(cat $layers/server/stamp)"
[ -e fails ] && { echo out of luck; exit 7; }
[ -e $layers/server ] || mkdir -p $layers/server/bin
echo "${COLOR:-none}" > $layers/server/stamp
printf '#!/bin/sh\nexec httpd -f -p "$PORT" -h /workspace\n' > $layers/server/bin/serve
chmod 755 $layers/server/bin/serve
printf '[types]\nlaunch = true\ncache = true\n' > $layers/server.toml
printf '[[processes]]\ntype = "web"\ncommand = ["serve"]\ndefault = true\n' > $layers/launch.toml
"#;

/// What can be wrong with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Builder {
    /// It speaks only versions of the platform interface that nobody speaks.
    pub speaks_another_interface: bool,
    /// It does not say what its apps run on.
    pub names_no_run_image: bool,
}

impl Builder {
    /// Writes the layout of the builder's image. `lifecycle` is the program of the stand-in.
    ///
    /// # Errors
    /// As [`Layout::image`].
    pub fn write(self, dir: &Path, lifecycle: &str, run_image: &str) -> Result<Layout> {
        let root = dir.join("root");
        write_base(&root)?;
        for (program, at) in [("/bin/mkdir", "bin/mkdir"), ("/bin/chmod", "bin/chmod")] {
            add_program(&root, program, at)?;
        }
        add_program(&root, lifecycle, "cnb/lifecycle/launcher")?;
        symlink("launcher", root.join("cnb/lifecycle/creator"))?;
        let versions = if self.speaks_another_interface {
            r#"["0.1", "7.0"]"#
        } else {
            r#"["0.10", "0.12"]"#
        };
        let home = root.join("home/cnb");
        fs::create_dir_all(&home)?;
        let buildpack = root.join("cnb/buildpacks/test_site/1.2/bin");
        fs::create_dir_all(&buildpack)?;
        for (file, text) in [
            ("etc/passwd", ACCOUNTS),
            ("etc/group", "root:x:0:\ncnb:x:1001:\n"),
            (
                "cnb/lifecycle/lifecycle.toml",
                &format!("[apis.platform]\ndeprecated = []\nsupported = {versions}\n"),
            ),
            (
                "cnb/order.toml",
                "[[order]]\n[[order.group]]\nid = \"test/site\"\nversion = \"1.2\"\n",
            ),
            ("cnb/buildpacks/test_site/1.2/bin/detect", DETECT),
            ("cnb/buildpacks/test_site/1.2/bin/build", BUILD),
        ] {
            fs::write(root.join(file), text)?;
        }
        for program in ["detect", "build"] {
            fs::set_permissions(buildpack.join(program), fs::Permissions::from_mode(0o755))?;
        }
        let images = if self.names_no_run_image {
            json!([])
        } else {
            json!([{"image": "gcr.io/e2e/absent-run", "mirrors": [run_image]}])
        };
        let labels = json!({
            "io.buildpacks.builder.metadata": json!({"images": images}).to_string(),
            "io.buildpacks.buildpack.order":
                json!([{"group": [{"id": "test/site", "version": "1.2"}]}]).to_string(),
            "io.buildpacks.buildpack.layers": json!({"test/site": {"1.2": {}}}).to_string(),
        });
        let environment = ["PATH=/bin", "CNB_USER_ID=1000", "CNB_GROUP_ID=1001"];
        Layout::of_root(dir, &json!({"Env": environment, "User": "1000:1001", "Labels": labels}))
    }

    /// Writes the layout of what apps run on, the stand-in's launcher among them.
    ///
    /// # Errors
    /// As [`Layout::image`].
    pub fn write_run_image(dir: &Path, lifecycle: &str) -> Result<Layout> {
        let root = dir.join("root");
        write_base(&root)?;
        add_libraries(&root, lifecycle)?;
        fs::write(root.join("etc/passwd"), ACCOUNTS)?;
        Layout::of_root(dir, &json!({"Env": ["PATH=/bin"], "User": "1000:1001"}))
    }
}
