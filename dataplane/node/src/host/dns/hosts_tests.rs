use std::os::unix::fs::PermissionsExt as _;

use proptest::{collection, prelude::*, sample};

use super::*;

fn entry(address: &str, name: &str) -> Entry {
    let short = name.strip_suffix(".mesh").map(str::to_owned);
    Entry { address: address.parse().unwrap(), name: name.to_owned(), short }
}

fn some() -> Vec<Entry> {
    vec![entry("100.64.0.1", "alpha.mesh"), entry("fd00::1", "alpha.mesh")]
}

const BLOCK: &str = "# BEGIN ringmesh mesh0\n\
     # Kept by the mesh's daemon: what stands here is replaced when a node comes or goes.\n\
     100.64.0.1\talpha.mesh alpha\n\
     fd00::1\talpha.mesh alpha\n\
     # END ringmesh mesh0\n";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_block_is_put_at_the_end_and_taking_it_out_gives_back_the_same_bytes() {
    for before in ["127.0.0.1 localhost\n", "127.0.0.1 localhost", "", "\n", "\n\n", "a\r\n", "# \u{e9}"] {
        let with = put(before.as_bytes(), "mesh0", &some()).unwrap();
        assert!(text(&with).starts_with(before), "{with:?}");
        assert!(text(&with).contains("\n100.64.0.1\talpha.mesh alpha\n"), "{}", text(&with));
        assert_eq!(text(&remove(&with, "mesh0").unwrap()), before);
    }
    let with = put(b"127.0.0.1 localhost\n", "mesh0", &some()).unwrap();
    assert_eq!(text(&with), format!("127.0.0.1 localhost\n{BLOCK}"));
}

proptest! {
    /// Whatever the file has, and whatever is wrong with it: outside our block no byte changes.
    #[test]
    fn nothing_outside_the_block_is_ever_changed(parts in collection::vec(part(), 0..8), cut in any::<bool>()) {
        let mut before = parts.concat().into_bytes();
        if cut {
            before.pop();
        }
        match find(&before, "mesh0") {
            Ok(None) => {
                let with = put(&before, "mesh0", &some()).unwrap();
                prop_assert!(with.starts_with(&before));
                prop_assert_eq!(remove(&with, "mesh0").unwrap(), before);
            }
            Ok(Some(Found { range, .. })) => {
                let with = put(&before, "mesh0", &some()).unwrap();
                prop_assert!(with.starts_with(&before[..range.start]));
                prop_assert!(with.ends_with(&before[range.end..]));
                prop_assert_eq!(&put(&with, "mesh0", &some()).unwrap(), &with);
                let without = remove(&with, "mesh0").unwrap();
                prop_assert_eq!(find(&without, "mesh0"), Ok(None));
            }
            Err(broken) => {
                prop_assert_eq!(put(&before, "mesh0", &some()), Err(broken.clone()));
                prop_assert_eq!(remove(&before, "mesh0"), Err(broken));
            }
        }
    }
}

/// Lines of which some mean something.
fn part() -> impl Strategy<Value = String> {
    let lines = [
        "127.0.0.1 localhost\n",
        "\n",
        "# BEGIN ringmesh mesh0\n",
        "# BEGIN ringmesh mesh0 after-open-line\n",
        "# END ringmesh mesh0\n",
        "# BEGIN ringmesh mesh1\n# END ringmesh mesh1\n",
        "#BEGIN ringmesh mesh0\n",
        "# BEGIN ringmesh\n",
        "100.64.0.9\tomega.mesh\n",
        "# BEGIN ringmesh mesh0\n100.64.0.9\tomega.mesh\n# END ringmesh mesh0\n",
    ];
    prop_oneof![8 => sample::select(lines.to_vec()).prop_map(str::to_owned), 1 => "[ -~\n]{0,12}"]
}

#[test]
fn bytes_that_are_no_text_survive() {
    let before = b"\xff\xfe 127.0.0.1 localhost\0".to_vec();
    let with = put(&before, "mesh0", &some()).unwrap();
    assert_eq!(remove(&with, "mesh0").unwrap(), before);
}

#[test]
fn a_block_is_replaced_where_it_stands_and_what_others_wrote_around_it_stays() {
    let with = put(b"one", "mesh0", &some()).unwrap();
    let changed = [b"zero\n".as_slice(), &with, b"two\n"].concat();
    let again = put(&changed, "mesh0", &[entry("100.64.0.9", "omega.mesh")]).unwrap();
    let shown = text(&again);
    assert!(shown.starts_with("zero\none\n# BEGIN ringmesh mesh0 after-open-line\n"), "{shown}");
    assert!(shown.ends_with("100.64.0.9\tomega.mesh omega\n# END ringmesh mesh0\ntwo\n"), "{shown}");
    assert!(!shown.contains("alpha"), "{shown}");
    // The line got its end from us, but it is no longer the last.
    assert_eq!(text(&remove(&again, "mesh0").unwrap()), "zero\none\ntwo\n");
}

#[test]
fn what_says_the_same_already_is_not_changed() {
    let with = put(b"one", "mesh0", &some()).unwrap();
    assert_eq!(put(&with, "mesh0", &some()).unwrap(), with);
    assert_eq!(remove(b"one", "mesh0").unwrap(), b"one");
}

#[test]
fn two_daemons_have_a_block_each_and_the_last_to_go_leaves_the_bytes_of_before() {
    for first in ["mesh0", "mesh1"] {
        let last = if first == "mesh0" { "mesh1" } else { "mesh0" };
        let with = put(b"one", "mesh0", &some()).unwrap();
        let both = put(&with, "mesh1", &[entry("100.65.0.1", "beta.lab")]).unwrap();
        let one_left = remove(&both, first).unwrap();
        assert!(!text(&one_left).contains(first) && text(&one_left).contains(last), "{}", text(&one_left));
        assert_eq!(text(&remove(&one_left, last).unwrap()), "one", "{first} went first");
    }
}

#[test]
fn another_interfaces_name_that_begins_the_same_is_another() {
    let with = put(b"one\n", "mesh0.1", &some()).unwrap();
    assert_eq!(find(&with, "mesh0").unwrap(), None);
    assert_eq!(remove(&with, "mesh0").unwrap(), with);
}

#[test]
fn a_block_broken_by_somebody_is_not_guessed_at() {
    let begin = "# BEGIN ringmesh mesh0\n";
    let end = "# END ringmesh mesh0\n";
    for (broken, line) in [
        (format!("x\n{begin}100.64.0.1 a\nmine\n"), 2),
        (format!("x\n100.64.0.1 a\n{end}"), 3),
        (format!("{begin}{begin}{end}"), 2),
        (format!("{begin}{end}{begin}{end}"), 3),
        (format!("{begin}# BEGIN ringmesh mesh1\n# END ringmesh mesh1\n{end}"), 2),
        (format!("{begin}{end}{end}"), 3),
    ] {
        assert_eq!(put(broken.as_bytes(), "mesh0", &some()).unwrap_err().line, line, "{broken}");
        assert_eq!(remove(broken.as_bytes(), "mesh0").unwrap_err().line, line, "{broken}");
    }
}

#[test]
fn a_broken_block_is_told_with_its_line_and_the_file_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    let broken = "127.0.0.1 localhost\n# BEGIN ringmesh mesh0\n100.64.0.1 a\n";
    fs::write(&path, broken).unwrap();
    let block = HostsBlock::new(&path, "mesh0");
    for failure in [block.put(&some()).unwrap_err(), block.remove().unwrap_err()] {
        let words = failure.to_string();
        assert!(words.contains("line 2") && words.contains("no end"), "{words}");
        assert_eq!(failure.reason(), Reason::Conflict);
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), broken);
}

#[test]
fn nothing_but_host_names_gets_into_the_file() {
    let evil = ["a\n10.0.0.1 bank", "a b", "a#b", "", "10.0.0.1", "\u{e9}.mesh", &"a".repeat(254)];
    let mut entries: Vec<_> = evil.iter().map(|name| entry("100.64.0.1", name)).collect();
    entries.push(Entry { short: Some("x\ny".to_owned()), ..entry("100.64.0.2", "fine.mesh") });
    entries.push(Entry { short: Some("a.b".to_owned()), ..entry("100.64.0.3", "a.b.mesh") });
    let with = text(&put(b"", "mesh0", &entries).unwrap());
    let names: Vec<_> = with.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(names, ["100.64.0.2\tfine.mesh", "100.64.0.3\ta.b.mesh"]);
}

#[test]
fn a_short_name_that_the_owner_gave_to_somebody_stays_that_ones() {
    let before = b"127.0.0.1 localhost\n10.0.0.5 Printer # alpha\n";
    let entries = ["printer", "localhost", "alpha"].map(|name| entry("100.64.0.1", &format!("{name}.mesh")));
    let with = text(&put(before, "mesh0", &entries).unwrap());
    assert!(with.contains("\tprinter.mesh\n"), "{with}");
    assert!(with.contains("\tlocalhost.mesh\n"), "{with}");
    assert!(with.contains("\talpha.mesh alpha\n"), "what stands in a comment is nobody's name: {with}");
}

#[test]
fn the_file_keeps_its_owner_and_mode_and_no_other_file_appears() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    fs::write(&path, "127.0.0.1 localhost").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    let before = fs::metadata(&path).unwrap();
    let block = HostsBlock::new(&path, "mesh0");
    assert!(block.put(&some()).unwrap());
    assert!(!block.put(&some()).unwrap(), "it says so already");
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
    assert_ne!(after.ino(), before.ino(), "replaced as a whole, so that nobody reads half of it");
    assert!(block.is_there().unwrap());
    assert!(block.remove().unwrap());
    assert!(!block.remove().unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "127.0.0.1 localhost");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_with_another_name_is_written_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("hosts"), folder.path().join("other"));
    fs::write(&path, "127.0.0.1 localhost\n").unwrap();
    fs::hard_link(&path, &other).unwrap();
    let block = HostsBlock::new(&path, "mesh0");
    block.put(&some()).unwrap();
    assert!(fs::read_to_string(&other).unwrap().contains("alpha.mesh"));
    block.remove().unwrap();
    assert_eq!(fs::read_to_string(&other).unwrap(), "127.0.0.1 localhost\n");
}

#[test]
fn a_link_stays_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (path, real) = (folder.path().join("hosts"), folder.path().join("real"));
    fs::write(&real, "127.0.0.1 localhost\n").unwrap();
    std::os::unix::fs::symlink(&real, &path).unwrap();
    HostsBlock::new(&path, "mesh0").put(&some()).unwrap();
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
    assert!(fs::read_to_string(&real).unwrap().contains("alpha.mesh"));
}

#[test]
fn what_a_kill_left_beside_the_file_goes_with_the_next_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    fs::write(&path, "127.0.0.1 localhost\n").unwrap();
    fs::write(temporary_of(&path), "half of").unwrap();
    assert!(!HostsBlock::new(&path, "mesh0").remove().unwrap());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn many_daemons_at_once_lose_nobodys_block() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    fs::write(&path, "127.0.0.1 localhost").unwrap();
    let interfaces: Vec<_> = (0..8).map(|number| format!("mesh{number}")).collect();
    std::thread::scope(|scope| {
        for interface in &interfaces {
            let block = HostsBlock::new(&path, interface);
            scope.spawn(move || {
                (0..10).for_each(|host| {
                    block.put(&[entry(&format!("100.64.0.{host}"), "a.mesh")]).unwrap();
                })
            });
        }
    });
    for interface in &interfaces {
        assert!(HostsBlock::new(&path, interface).remove().unwrap(), "{interface}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "127.0.0.1 localhost");
}

#[test]
fn somebody_who_keeps_the_lock_only_delays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hosts");
    fs::write(&path, "127.0.0.1 localhost\n").unwrap();
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    assert!(HostsBlock::new(&path, "mesh0").put(&some()).unwrap());
    assert!(fs::read_to_string(&path).unwrap().ends_with(BLOCK));
}

#[test]
fn a_file_that_is_missing_has_no_block_and_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let block = HostsBlock::new(&folder.path().join("hosts"), "mesh0");
    assert!(!block.is_there().unwrap());
    assert!(!block.remove().unwrap());
    block.put(&some()).unwrap_err();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
