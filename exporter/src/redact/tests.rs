use proptest::prelude::*;

use super::*;

fn all(args: &[&str]) -> Vec<String> {
    let mut redactor = Redactor::new();
    args.iter().map(|arg| String::from_utf8_lossy(&redactor.arg(arg.as_bytes())).into_owned()).collect()
}

fn assert_redacts(args: &[&str], expected: &[&str]) {
    assert_eq!(all(args), expected);
}

fn assert_keeps(args: &[&str]) {
    let mut redactor = Redactor::new();
    for arg in args {
        assert_eq!(redactor.arg(arg.as_bytes()), Cow::Borrowed(arg.as_bytes()), "{arg}");
    }
    assert!(!redactor.changed());
}

#[test]
fn values_of_secret_flags_are_replaced() {
    assert_redacts(&["x", "--password", "a b", "file"], &["x", "--password", "REDACTED", "file"]);
    assert_redacts(&["x", "--PassWord=a b", "-token=x"], &["x", "--PassWord=REDACTED", "-token=REDACTED"]);
    assert_redacts(
        &["java", "-Ddb.password=a", "-Dpassword=b"],
        &["java", "-Ddb.password=REDACTED", "-Dpassword=REDACTED"],
    );
    assert_redacts(&["x", "--password", "--token", "abc"], &["x", "--password", "REDACTED", "REDACTED"]);
}

#[test]
fn values_of_secret_variables_are_replaced() {
    assert_redacts(&["env", "A=b", "PGPASSWORD=a b=c"], &["env", "A=b", "PGPASSWORD=REDACTED"]);
    assert_redacts(&["docker", "run", "-e", "API_KEY=a"], &["docker", "run", "-e", "API_KEY=REDACTED"]);
    assert_redacts(&["x", "--env=SECRET=a b"], &["x", "--env=SECRET=REDACTED"]);
    assert_redacts(&["helm", "--set", "a=1,db.password=x"], &["helm", "--set", "a=1,db.password=REDACTED"]);
}

#[test]
fn shell_scripts_are_searched_word_by_word() {
    assert_redacts(&["sh", "-c", "PASSWORD=abc run --fast"], &["sh", "-c", "PASSWORD=REDACTED run --fast"]);
    assert_redacts(&["sh", "-c", "TOKEN='a b' run"], &["sh", "-c", "TOKEN='REDACTED' run"]);
    assert_redacts(&["sh", "-c", "x --password \"a b\" y; z"], &["sh", "-c", "x --password \"REDACTED\" y; z"]);
    assert_redacts(&["sh", "-c", "mysql -u root -ps3cr@t db"], &["sh", "-c", "mysql -u root -pREDACTED db"]);
    assert_redacts(
        &["sh", "-c", "curl -H \"Authorization: Bearer a b\" http://h && ls"],
        &["sh", "-c", "curl -H \"Authorization: REDACTED\" http://h && ls"],
    );
    assert_redacts(&["sh", "-c", "export DB_PASSWORD=a\"b c\"d; ls"], &["sh", "-c", "export DB_PASSWORD=REDACTED; ls"]);
}

#[test]
fn urls_lose_their_userinfo_and_signatures() {
    assert_redacts(&["x", "https://a:b@h/p?q=1"], &["x", "https://REDACTED:REDACTED@h/p?q=1"]);
    assert_redacts(&["x", "git+https://tok@h/"], &["x", "git+https://REDACTED@h/"]);
    assert_redacts(&["x", "postgres://u:p/w?@h/db"], &["x", "postgres://REDACTED:REDACTED@h/db"]);
    assert_redacts(
        &["x", "https://h/o?X-Amz-Signature=ab&x=1&sig=c&access_token=d"],
        &["x", "https://h/o?X-Amz-Signature=REDACTED&x=1&sig=REDACTED&access_token=REDACTED"],
    );
    assert_redacts(&["x", "--url=https://h/?token=a&b=c"], &["x", "--url=https://h/?token=REDACTED&b=c"]);
}

#[test]
fn headers_lose_their_credentials() {
    assert_redacts(&["curl", "-H", "Authorization: Bearer a"], &["curl", "-H", "Authorization: REDACTED"]);
    assert_redacts(&["curl", "-HCookie:a=b; c=d"], &["curl", "-HCookie:REDACTED"]);
    assert_redacts(&["curl", "--header=X-Api-Key: a"], &["curl", "--header=X-Api-Key: REDACTED"]);
    assert_redacts(&["curl", "-u", "me:pw", "-uyou:pw"], &["curl", "-u", "me:REDACTED", "-uyou:REDACTED"]);
    assert_redacts(
        &["curl", "-d", "{\"password\":\"a b\",\"x\":1}"],
        &["curl", "-d", "{\"password\":\"REDACTED\",\"x\":1}"],
    );
}

#[test]
fn short_flags_mean_what_their_program_says() {
    assert_redacts(&["/usr/bin/mysql", "-pabc", "db"], &["/usr/bin/mysql", "-pREDACTED", "db"]);
    assert_redacts(&["sudo", "redis-cli", "-a", "x"], &["sudo", "redis-cli", "-a", "REDACTED"]);
    assert_redacts(&["docker", "login", "-u", "me", "-p", "x"], &["docker", "login", "-u", "me", "-p", "REDACTED"]);
}

#[test]
fn secrets_in_odd_places_are_found() {
    assert_redacts(
        &["x", "-user-token=a b", "-unlock-password=c"],
        &["x", "-user-token=REDACTED", "-unlock-password=REDACTED"],
    );
    assert_redacts(&["sh", "-c", "x -user-token=a b"], &["sh", "-c", "x -user-token=REDACTED b"]);
    assert_redacts(&["sh", "-c", "echo it's; PASSWORD='a b' x"], &["sh", "-c", "echo it's; PASSWORD='REDACTED' x"]);
    assert_redacts(&["x", "{\\\"password\\\":\\\"abc\\\"}"], &["x", "{\\\"password\\\":REDACTED}"]);
    assert_redacts(&["x", "a=b&user[password]=abc&c=d"], &["x", "a=b&user[password]=REDACTED&c=d"]);
    assert_redacts(&["ruby", "-e", "f('password' => 'abc', 1)"], &["ruby", "-e", "f('password' => 'REDACTED', 1)"]);
    assert_redacts(&["x", "a\npassword = abc\nb"], &["x", "a\npassword = REDACTED\nb"]);
    assert_redacts(&["x", "a\npassword: a b\nc"], &["x", "a\npassword: REDACTED\nc"]);
    assert_redacts(&["x", "a://b:c@d,e://f:g@h"], &["x", "a://REDACTED:REDACTED@d,e://REDACTED:REDACTED@h"]);
    assert_redacts(&["x", "-----BEGIN RSA PRIVATE KEY-----\nabc"], &["x", "REDACTED"]);
    assert_redacts(
        &["npm", "config", "set", "//r/:_authToken=abc"],
        &["npm", "config", "set", "//r/:_authToken=REDACTED"],
    );
    assert_redacts(&["sh", "-c", "curl -u me:'p w' h"], &["sh", "-c", "curl -u me:'REDACTED' h"]);
    assert_redacts(
        &["openssl", "req", "-keyout", "a", "-passin", "pass:x"],
        &["openssl", "req", "-keyout", "a", "-passin", "REDACTED"],
    );
}

#[test]
fn what_is_not_secret_is_untouched() {
    assert_keeps(&["ls", "-l", "/tmp", ""]);
    assert_keeps(&["docker", "run", "-p", "80:80", "-u", "app:app", "-v", "/a:/b", "img@sha256:abc"]);
    assert_keeps(&["mkdir", "-p", "a/b", "PWD=/x", "--password-file", "/run/secrets/x"]);
    assert_keeps(&["git", "clone", "ssh://git@h/r.git", "https://h:8080/a@b"]);
    assert_keeps(&["date", "-u", "+%H:%M", "--max-tokens", "4", "keyboard=us", "author: me"]);
    assert_keeps(&["sh", "-c", "for i in a 'b c' \"d\"; do echo $i | sed s/x/y/; done"]);
    assert_keeps(&["docker", "run", "acme/my-token:1.2", "--author", "x"]);
    assert_keeps(&["ps", "-u", "root", "chown", "-u", "1000:1000"]);
}

#[test]
fn what_follows_a_gap_is_hidden() {
    let mut redactor = Redactor::new();
    assert_eq!(*redactor.arg_before_gap(b"--passw"), *b"--passw");
    assert_eq!(*redactor.arg_after_gap(b"ord"), *b"REDACTED");
    assert_eq!(*redactor.arg(b"hunter2"), *b"REDACTED");
    assert_eq!(*redactor.arg(b"plain"), *b"plain");
    assert_eq!(*redactor.arg_after_gap(b"a b"), *b"REDACTED");
    assert_eq!(*redactor.arg(b"plain"), *b"plain");
    assert_eq!(*redactor.arg_after_gap(b""), *b"");
    assert_eq!(*redactor.arg(b"hunter2"), *b"REDACTED");
}

#[test]
fn a_url_cut_before_its_at_sign_is_hidden() {
    let cut = |arg: &str| String::from_utf8_lossy(&Redactor::new().arg_before_gap(arg.as_bytes())).into_owned();
    assert_eq!(cut("https://me:hunt"), "https://REDACTED");
    assert_eq!(cut("https://me:hunt/er"), "https://REDACTED");
    assert_eq!(cut("https://h/path"), "https://h/path");
    assert_eq!(cut("--password=hunt"), "--password=REDACTED");
}

#[test]
fn hostile_input_of_any_length_is_done_with() {
    // Four times what the kernel side sends: anything worse than linear does not come back.
    for piece in [
        "a://b:c/",
        "a://b:c@d,",
        "a://b:c@d?x ",
        "\"password\" ",
        "--password ",
        "'",
        "\\\"",
        "=",
        "password=",
        "password: '",
        ":",
        "a=",
        "://",
        "-u a:",
        "-u'b'",
        "-u '",
        "--password = ",
    ] {
        let arg = piece.repeat((4 << 16) / piece.len());
        assert!(Redactor::new().arg(arg.as_bytes()).len() < 4 * arg.len(), "{piece}");
    }
}

/// Ways to pass a secret: one or more arguments in which `%` stands for it.
const FORMS: [&[&str]; 34] = [
    &["--password", "%"],
    &["--password=%"],
    &["--passwd=%"],
    &["--passphrase", "%"],
    &["--token=%"],
    &["--secret", "%"],
    &["--client_secret", "%"],
    &["--api-key=%"],
    &["--apikey", "%"],
    &["--ACCESS-KEY=%"],
    &["--auth", "%"],
    &["--credentials=%"],
    &["--private-key", "%"],
    &["-Dspring.password=%"],
    &["PASSWORD=%"],
    &["-e", "GITHUB_TOKEN=%"],
    &["--env=AWS_SECRET_ACCESS_KEY=%"],
    &["--from-literal=api_key=%"],
    &["sh", "-c", "PASSWORD=% run"],
    &["sh", "-c", "PASSWORD='%'; run"],
    &["sh", "-c", "a && x --token % y"],
    &["bash", "-lc", "curl -H 'X-Api-Key: %' h"],
    &["postgres://user:%@host/db"],
    &["--dsn=amqp://user:%@host"],
    &["https://%@host/"],
    &["https://h/?a=b&X-Amz-Signature=%&c=d"],
    &["https://h/?X-Goog-Signature=%"],
    &["-H", "Authorization: Bearer %"],
    &["-H", "Cookie: s=%; t=%"],
    &["--header=Authorization: Basic %"],
    &["-u", "user:%"],
    &["-d", "{\"password\": \"%\"}"],
    &["mysql", "-p%"],
    &["sh", "-c", "sshpass -p % ssh h"],
];

proptest! {
    #[test]
    fn no_input_makes_it_panic(
        args in prop::collection::vec(prop::collection::vec(
            prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                prop::sample::select(vec![
                    "password", "--token", "://", "=", ":", "\"", "'", "\\", " ", "@", "-u", "mysql", "-p", "[", "]", "{", "&", "\n",
                ]).prop_map(|text| text.as_bytes().to_vec()),
            ], 0..20), 0..8)
    ) {
        let mut redactor = Redactor::new();
        for arg in args {
            let arg = arg.concat();
            redactor.arg(&arg);
            redactor.clone().arg_before_gap(&arg);
            redactor.clone().arg_after_gap(&arg);
        }
    }

    #[test]
    fn a_secret_in_any_known_form_is_gone(
        form in prop::sample::select(FORMS.to_vec()),
        // Marked all along, with what no form has.
        secret in "(QQ[a-zA-Z0-9._~+=@%/-]{0,4}){1,8}QQ",
        before in prop::sample::select(vec!["run", "--verbose", "-x", "A=b", "http://h/", "it's", "\"", "a b"]),
    ) {
        let mut redactor = Redactor::new();
        redactor.arg(before.as_bytes());
        for arg in form {
            // Without a colon in front, a user's name with a slash is a host and its path.
            let secret = if arg.contains("://%") { secret.replace('/', "%2F") } else { secret.clone() };
            let arg = arg.replace('%', &secret);
            let sent = String::from_utf8_lossy(&redactor.arg(arg.as_bytes())).into_owned();
            prop_assert!(!sent.contains("QQ"), "{} -> {}", arg, sent);
        }
        prop_assert!(redactor.changed());
    }

    #[test]
    fn spaces_and_signs_in_the_secret_of_a_whole_argument_do_not_save_it(
        form in prop::sample::select(FORMS[..18].to_vec()),
        secret in "(QQ[ -~]{0,4}){1,8}QQ",
    ) {
        let mut redactor = Redactor::new();
        redactor.arg(b"run");
        for arg in form {
            let arg = arg.replace('%', &secret);
            let sent = String::from_utf8_lossy(&redactor.arg(arg.as_bytes())).into_owned();
            prop_assert!(!sent.contains("QQ"), "{} -> {}", arg, sent);
        }
    }

    #[test]
    fn plain_words_and_paths_are_borrowed(args in prop::collection::vec("(-{0,2}[a-lA-L]{0,8}|(/[a-l ]{1,8}){1,4}|[a-l]{1,5}=[a-l0-9 ]{0,9})", 0..10)) {
        let mut redactor = Redactor::new();
        for arg in &args {
            prop_assert!(matches!(redactor.arg(arg.as_bytes()), Cow::Borrowed(_)), "{}", arg);
        }
        prop_assert!(!redactor.changed());
    }
}
