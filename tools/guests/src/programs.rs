//! The benchmark programs: many small sources, one static binary that acts by its own name.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::command::{run, say};
use crate::packages::require;
use crate::stamp::{self, manifest};

/// The programs, by the name they have in the guest.
pub const PROGRAMS: &[(&str, &str)] = &[
    ("calls", include_str!("../programs/calls.c")),
    ("clocks", include_str!("../programs/clocks.c")),
    ("dirty", include_str!("../programs/dirty.c")),
    ("diskbench", include_str!("../programs/diskbench.c")),
    ("forks", include_str!("../programs/forks.c")),
    ("gen", include_str!("../programs/gen.c")),
    ("intloop", include_str!("../programs/intloop.c")),
    ("memtouch", include_str!("../programs/memtouch.c")),
    ("nbody", include_str!("../programs/nbody.c")),
    ("netbench", include_str!("../programs/netbench.c")),
    ("simd", include_str!("../programs/simd.c")),
    ("syscalls", include_str!("../programs/syscalls.c")),
    ("tick", include_str!("../programs/tick.c")),
];

/// The binary with all programs in it, in the folder `programs` of the cache, compiled if needed.
/// The folder also has a link to it for each program, for use on the host.
///
/// # Errors
/// When there is no C compiler or a program does not compile.
pub fn programs(cache: &Cache, force: bool) -> Result<PathBuf> {
    let binary = cache.path("programs/bench");
    let recipe = recipe();
    let stamp_path = cache.path("programs/manifest.json");
    let wanted = manifest([("recipe", &recipe)]);
    if !force && stamp::is_current(&stamp_path, &wanted, &[&binary]) {
        return Ok(binary);
    }
    require(&["gcc", "libc6-dev", "binutils"])?;
    say("compiling the benchmark programs");
    let dir = cache.fresh_dir("programs")?;
    compile(&dir)?;
    for (name, _) in PROGRAMS {
        std::os::unix::fs::symlink("bench", dir.join(name))?;
    }
    stamp::write(&stamp_path, &wanted)?;
    Ok(binary)
}

/// A name for the text of all programs.
pub fn recipe() -> String {
    let mut parts = vec![include_bytes!("programs.rs").as_slice()];
    parts.extend(PROGRAMS.iter().map(|(_, source)| source.as_bytes()));
    stamp::recipe(&parts)
}

/// Compiles each source by itself, keeps only its `main` under another name, and links them all.
fn compile(dir: &Path) -> Result<()> {
    let mut objects = Vec::new();
    for (name, source) in PROGRAMS {
        let (file, object) = (format!("{name}.c"), format!("{name}.o"));
        fs::write(dir.join(&file), source)?;
        run(gcc(dir).args(["-w", "-c", &file, "-o", &object])).context(*name)?;
        let rename = format!("--redefine-sym=main={name}_main");
        let keep = format!("--keep-global-symbol={name}_main");
        run(objcopy(dir).args([&rename, &object]))?;
        run(objcopy(dir).args([&keep, &object]))?;
        objects.push(object);
    }
    fs::write(dir.join("dispatch.c"), dispatcher())?;
    let link = ["dispatch.c", "-static", "-s", "-o", "bench"];
    run(gcc(dir).args(link).args(&objects).args(["-lm", "-lpthread"]))?;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn gcc(dir: &Path) -> Command {
    let mut command = Command::new("gcc");
    command.arg("-O2").current_dir(dir);
    command
}

fn objcopy(dir: &Path) -> Command {
    let mut command = Command::new("objcopy");
    command.current_dir(dir);
    command
}

/// The C source of the `main` that picks a program by the last part of `argv[0]`.
fn dispatcher() -> String {
    let mut text = String::from("#include <stdio.h>\n#include <string.h>\n");
    for (name, _) in PROGRAMS {
        let _ = writeln!(text, "int {name}_main(int, char **);");
    }
    text.push_str("int main(int c, char **v) {\n");
    text.push_str(" const char *n = strrchr(v[0], '/'); n = n ? n + 1 : v[0];\n");
    for (name, _) in PROGRAMS {
        let _ = writeln!(text, " if (!strcmp(n, \"{name}\")) return {name}_main(c, v);");
    }
    text.push_str(" fprintf(stderr, \"unknown program %s\\n\", n);\n return 127;\n}\n");
    text
}
