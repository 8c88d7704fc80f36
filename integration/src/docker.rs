//! Containers of a real Docker daemon; what a case has made goes with it.

use std::fs;
use std::path::Path;
use std::process::Command;

pub use crate::image::TAG;
use crate::image::{self, unique};

/// An image with busybox and nothing else, and the containers made from it.
#[derive(Debug)]
pub struct Docker {
    /// Repository; all names of containers begin so.
    pub image: String,
    /// `sha256:...`
    pub image_id: String,
}

/// One that has run to its end and is kept, so that it can be asked for.
#[derive(Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    pub stdout: String,
}

impl Docker {
    /// Makes the image: nothing can be pulled everywhere.
    #[must_use]
    pub fn new() -> Self {
        Self::of(image::root().path())
    }

    /// With an image of these files, which begin with those of [`image::root`].
    #[must_use]
    pub fn of(root: &Path) -> Self {
        let image = unique("nstest-busybox");
        let script = r#"tar -C "$1" -c . | docker import - "$2""#;
        let tagged = format!("{image}:{TAG}");
        let output = Command::new("sh").args(["-c", script, "sh"]).arg(root).arg(&tagged).output().unwrap();
        assert!(output.status.success(), "docker import: {}", String::from_utf8_lossy(&output.stderr));
        Self { image, image_id: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }

    #[must_use]
    pub fn tagged(&self) -> String {
        format!("{}:{TAG}", self.image)
    }

    #[must_use]
    pub fn name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.image)
    }

    /// `docker run` to the end, with these options, of this command.
    #[must_use]
    pub fn run(&self, suffix: &str, options: &[&str], command: &[&str]) -> Container {
        let name = self.name(suffix);
        let tagged = self.tagged();
        let head = ["run", "--name", &name];
        let stdout = docker(&[&head[..], options, &[tagged.as_str()], command].concat());
        let id = docker(&["inspect", "--format", "{{.Id}}", &name]).trim().to_owned();
        assert_eq!(id.len(), 64);
        Container { id, name, stdout }
    }

    /// `docker run --rm`: gone when it returns. Its id.
    #[must_use]
    pub fn run_and_forget(&self, suffix: &str, command: &[&str]) -> Container {
        let name = self.name(suffix);
        let tagged = self.tagged();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("id");
        let head = ["run", "--rm", "--name", &name, "--cidfile", file.to_str().unwrap(), &tagged];
        let stdout = docker(&[&head[..], command].concat());
        Container { id: fs::read_to_string(file).unwrap(), name, stdout }
    }
}

impl Default for Docker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let script = r#"docker ps -aq --filter "name=^/$1" | xargs -r docker rm -f && docker rmi -f "$1:$2""#;
        let done = Command::new("sh").args(["-c", script, "sh", &self.image, TAG]).output();
        if !done.is_ok_and(|output| output.status.success()) {
            eprintln!("{} stays behind", self.image);
        }
    }
}

/// What `docker` has printed, which must succeed.
#[expect(clippy::must_use_candidate, reason = "some are for what they do")]
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
