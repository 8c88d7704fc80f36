//! What has been found once is tried for ever: each file of the corpus, by the target whose folder it is in.

use std::fs;
use std::path::Path;

use namespan_fuzz::TARGETS;

#[test]
fn every_file_of_the_corpus_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = folder.join("../testdata");
    for (target, check) in TARGETS {
        let mut folders = vec![folder.join("corpus").join(target)];
        match target {
            "ring" | "hit" => folders.push(data.join("ring")),
            "btf" => folders.push(data.join("btf")),
            _ => {}
        }
        let mut files = 0;
        // Some have records of the tests alone.
        folders.retain(|folder| folder.is_dir());
        for entry in folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()) {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            // Whatever panics: this tells which file it was.
            println!("{}", path.display());
            check(&bytes);
            files += 1;
        }
        assert!(files > 0, "nothing for {target}");
    }
}
