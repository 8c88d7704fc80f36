//! What is read, what is refused and where, and that a printed probe is read as the same.

use proptest::prelude::*;

use super::*;
use crate::config::selector;
use crate::uprobe::spec::{Binary, Capture, Expression, Function, Kind, MATCHES_MAX, PID_MAX, Target, Type, Uprobe};

fn parsed(text: &str) -> Uprobe {
    probe(text, &[]).unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn containers(texts: &[&str]) -> Target {
    Target::Containers(texts.iter().map(|text| selector(text).unwrap()).collect())
}

fn symbol(name: &str) -> Function {
    Function::Symbol(name.to_owned())
}

fn capture(name: &str, position: u8, value: Type) -> Capture {
    Capture { name: name.to_owned(), position, value }
}

#[test]
fn a_target_is_a_word_or_a_selector() {
    let cases = [
        ("host:libc:f", Target::Host),
        ("/bin/sh:f", Target::Host),
        ("\"/bin/sh\":f", Target::Host),
        ("pid=17:libc:f", Target::Pid(17)),
        ("web:/bin/sh:f", containers(&["name:web"])),
        ("  web-*?_.:/bin/sh:f  ", containers(&["name:web-*?_."])),
        ("*:/bin/sh:f", containers(&["name:*"])),
        ("[name:host]:/bin/sh:f", containers(&["name:host"])),
        ("[image:debian:*]:libc:f", containers(&["image:debian:*"])),
        (r"[label:a\]=b,id:12][pod:x]:libc:f", containers(&[r"label:a\]=b,id:12", "pod:x"])),
    ];
    for (text, target) in cases {
        assert_eq!(parsed(text).target, target, "{text}");
    }
    let given = [selector("label:a").unwrap()];
    let found = probe("libc:f", &given).unwrap();
    assert_eq!((found.target, found.binary), (containers(&["label:a"]), Binary::Library("libc".to_owned())));
}

#[test]
fn a_function_is_a_symbol_a_place_a_pattern_or_a_marker() {
    let pattern = |text: &str, limit| Function::Pattern { regex: Expression::new(text).unwrap(), limit };
    let at = |symbol: Option<&str>, offset| Function::Offset { symbol: symbol.map(ToOwned::to_owned), offset };
    let cases = [
        ("readline", symbol("readline")),
        ("_ZN3foo3barEv@@V_1.2", symbol("_ZN3foo3barEv@@V_1.2")),
        ("ns::Class<T>::~Class", symbol("ns::Class<T>::~Class")),
        ("app::{{closure}}", symbol("app::{{closure}}")),
        (r#""ns::f(int, \"x\")""#, symbol(r#"ns::f(int, "x")"#)),
        ("f+16", at(Some("f"), 16)),
        (r#""operator+"+0x10"#, at(Some("operator+"), 16)),
        ("+0x1234", at(None, 0x1234)),
        ("/^SSL_(read|write)$/", pattern("^SSL_(read|write)$", 10)),
        (r"/(?:a|b)\/\d: x/200", pattern(r"(?:a|b)/\d: x", 200)),
        (r"/\\/", pattern(r"\\", 10)),
        (
            "usdt:python:function__entry",
            Function::Usdt { provider: "python".to_owned(), name: "function__entry".to_owned() },
        ),
        ("usdt::x", symbol("usdt::x")),
    ];
    for (text, wanted) in cases {
        assert_eq!(parsed(&format!("host:libx:{text}")).function, wanted, "{text}");
        assert_eq!(function(text).unwrap(), wanted, "{text}");
    }
    assert_eq!(function("ns::f(int)"), Ok(symbol("ns::f(int)")));
    assert_eq!(function("operator+"), Ok(symbol("operator+")));
    assert_eq!(function("operator+ (a)+8"), Ok(at(Some("operator+ (a)"), 8)));
}

#[test]
fn the_arrow_and_the_arguments_say_the_kind() {
    let ret = || Some(capture("ret", 0, Type::String));
    let a = || vec![capture("a", 0, Type::U64)];
    let cases = [
        ("f", Kind::Entry, vec![], None),
        ("f()", Kind::Entry, vec![], None),
        ("f(a:u64)", Kind::Entry, a(), None),
        ("f -> string", Kind::Return, vec![], ret()),
        ("f->ret:string", Kind::Return, vec![], ret()),
        ("f -> _", Kind::Return, vec![], None),
        ("f() -> _", Kind::Both, vec![], None),
        ("f( a: u64 )->ret: string", Kind::Both, a(), ret()),
        ("f(a:u64) -> _", Kind::Both, a(), None),
        ("f -> *f64", Kind::Return, vec![], Some(capture("ret", 0, Type::F64At))),
    ];
    for (text, kind, args, returns) in cases {
        let found = parsed(&format!("web:/x:{text}"));
        assert_eq!((found.kind, found.args, found.returns), (kind, args, returns), "{text}");
    }
}

#[test]
fn an_argument_follows_the_one_before_unless_it_says_where() {
    let found = parsed("host:libc:f(a:i8, b@3:bytes(4), c:u64, d@0:bool, e: *f32)").args;
    let expected = [
        capture("a", 0, Type::I8),
        capture("b", 3, Type::Bytes { length: 4 }),
        capture("c", 4, Type::U64),
        capture("d", 0, Type::Bool),
        capture("e", 1, Type::F32At),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_refusal_says_what_and_points_where() {
    let cases = [
        ("", 0, "a target is host"),
        ("libc:malloc", 11, "a library takes a target, such as host:libc:malloc"),
        ("/bin/sh", 7, "a function is missing"),
        ("web", 0, "TARGET:BINARY:FUNCTION"),
        ("web:", 4, "this is not an absolute path"),
        ("web:./sh:f", 4, "this is not an absolute path"),
        ("web:/:f", 4, "the path of a file"),
        ("web:/a b:f", 6, "double quotes"),
        ("web:/a:", 7, "a function is missing"),
        ("pid=0:libc:f", 0, "no process"),
        ("pid=x:libc:f", 4, "a process id is a number"),
        ("[web]:libc:f", 1, "a selector is name:GLOB"),
        ("[name:web:libc:f", 0, "never closed"),
        ("host:libc:malloc*", 16, "a regular expression between slashes"),
        ("host:libc:/a", 10, "no slash at its end"),
        ("host:libc:/(/", 10, "this is not a regular expression: unclosed"),
        ("host:libc:/a/0", 13, "1 to 1000 functions"),
        ("host:libc:\"a", 10, "never closed"),
        ("host:libc:f+x", 12, "an offset is a number"),
        ("host:libc:usdt:a", 16, "usdt:PROVIDER:NAME"),
        ("host:libc:a b", 12, "after the function"),
        ("host:libc:a(b)", 13, "its type are missing"),
        ("host:libc:a(1b:u8)", 12, "the first no digit"),
        ("host:libc:a(b:u8", 16, "`,` or `)`"),
        ("host:libc:a(b@12:u8)", 14, "at most 11"),
        ("host:libc:a(b@7:u8)", 12, "only arguments 0 to 5"),
        ("host:libc:a(ä:u8)", 12, "letters, digits"),
        ("host:libc:a(b:u8, b:u8)", 18, "names another argument"),
        ("host:libc:a(b:double)", 14, "f64 may be meant"),
        ("host:libc:a(b:f64)", 12, "vector register"),
        ("host:libc:a(b:bytes)", 14, "bytes(N) takes"),
        ("host:libc:a(b:bytes(1)", 22, "`,` or `)`"),
        ("host:libc:a -> ", 15, "a type is one of"),
        ("host:libc:a -> b:bytes(1)", 15, "gone at return"),
        ("host:libc:a -> u8 x", 18, "nothing else may follow"),
        ("host:libc:usdt:a:b -> _", 19, "does not return"),
        ("host:libc:a+4 -> _", 14, "where it returns to"),
        ("ä:libc:f", 0, "a target is"),
    ];
    for (text, column, phrase) in cases {
        let refusal = probe(text, &[]).expect_err(text);
        assert!(refusal.problem.contains(phrase), "{text}: {}", refusal.problem);
        assert_eq!(refusal.column, column, "{refusal}");
    }
    let many = (0..9).map(|index| format!("a{index}@0:u8")).collect::<Vec<_>>().join(",");
    assert!(probe(&format!("host:libc:f({many})"), &[]).unwrap_err().problem.contains("8 arguments at most"));
    let long = probe(&"x".repeat(TEXT_MAX + 1), &[]).unwrap_err();
    assert!(long.problem.contains("too many"), "{long}");
    assert!(long.to_string().len() < 256);
}

#[test]
fn a_refusal_draws_no_control_characters() {
    let refusal = probe("web:/a:\u{1b}[31m\n", &[]).unwrap_err();
    assert!(!refusal.to_string().contains('\u{1b}'), "{refusal}");
    assert_eq!(refusal.to_string().lines().count(), 3);
}

#[test]
fn a_probe_is_named_after_its_function() {
    let cases = [
        ("readline", "readline"),
        ("__libc_start_main", "libc_start_main"),
        ("ns::f<int>", "ns-f-int"),
        ("f+16", "f-0x10"),
        ("+16", "0x10"),
        ("/^SSL_(read|write)$/", "SSL_-read-write"),
        ("/../", "probe"),
        ("usdt:a:b__c", "a-b__c"),
    ];
    for (text, name) in cases {
        assert_eq!(parsed(&format!("host:libc:{text}")).name, name);
    }
    assert_eq!(name_of(&symbol(&"x".repeat(300))).len(), 64);
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z][a-zA-Z0-9_]{0,31}"
}

fn target() -> impl Strategy<Value = Target> {
    let escaped = |text: &str| text.chars().flat_map(|character| ['\\', character]).collect::<String>();
    let condition = prop_oneof![
        "[a-z*?.-]{1,8}".prop_map(|name| format!("name:{name}")),
        "[a-z/:*.]{0,8}[a-z]".prop_map(|name| format!("image:{name}")),
        ("[^\\pC]{0,4}[a-z]", ".{0,4}").prop_map(move |(key, value)| format!(
            "label:{}={}",
            escaped(&key),
            escaped(&value)
        )),
        Just("label:a".to_owned()),
        Just("compose:shop,runtime:docker,id:01".to_owned()),
        "[^\\\\]{0,4}[a-z]".prop_map(move |text| format!("pod:{}", escaped(&text))),
        Just("name:host".to_owned()),
        Just("namespace:kube-*".to_owned()),
    ];
    let selectors = prop::collection::vec(condition.prop_map(|text| selector(&text).unwrap()), 1..4);
    prop_oneof![Just(Target::Host), (1..=PID_MAX).prop_map(Target::Pid), selectors.prop_map(Target::Containers)]
}

fn any_function() -> impl Strategy<Value = Function> {
    let text = || prop_oneof!["[a-z_:<>&{}+*/]{1,12}", "\\PC{0,12}[a-z]"];
    let regex = prop_oneof!["[a-z/|.]{1,12}", Just(r"[/]\\\\(a|/)\d".to_owned()), Just(r"\\/".to_owned())];
    prop_oneof![
        text().prop_map(Function::Symbol),
        (prop::option::of(text()), any::<u64>()).prop_map(|(symbol, offset)| Function::Offset { symbol, offset }),
        (regex, 1..=MATCHES_MAX)
            .prop_map(|(text, limit)| Function::Pattern { regex: Expression::new(&text).unwrap(), limit }),
        ("[a-z_.]{1,8}", "[a-z_.$]{1,8}").prop_map(|(provider, name)| Function::Usdt { provider, name }),
    ]
}

fn value() -> impl Strategy<Value = Type> {
    prop_oneof![
        prop::sample::select(vec![
            Type::I8,
            Type::U64,
            Type::Pointer,
            Type::Bool,
            Type::String,
            Type::F32At,
            Type::F64At
        ]),
        (0..=5u8).prop_map(|length| Type::Bytes { length }),
    ]
}

fn any_probe() -> impl Strategy<Value = Uprobe> {
    let binary = prop_oneof![
        "/[^\\pC]{0,12}[a-z]".prop_map(Binary::Path),
        "[^\\pC/]{0,12}[a-z]".prop_map(Binary::Library),
        "lib[a-z+.0-9]{1,12}".prop_map(Binary::Library),
    ];
    let args = prop::collection::vec((name(), 0..=5u8, value()), 0..4);
    (target(), binary, any_function(), args, prop::option::of((name(), value())), 0..3u8).prop_map(
        |(target, binary, function, args, returns, kind)| {
            let kind = [Kind::Entry, Kind::Return, Kind::Both][usize::from(kind)];
            let args: Vec<_> = args.iter().map(|(name, position, value)| capture(name, *position, *value)).collect();
            let returns = returns.map(|(name, value)| capture(&name, 0, value));
            let of_kind = if kind == Kind::Return { Vec::new() } else { args };
            let returns = returns.filter(|_| kind != Kind::Entry);
            let least = Uprobe::new(name_of(&function), target, binary, function);
            let all = Uprobe { kind, args: of_kind, returns, ..least.clone() };
            if crate::uprobe::check::check(&all).is_ok() { all } else { least }
        },
    )
}

proptest! {
    #[test]
    fn a_probe_that_goes_together_is_read_as_it_was_printed(wanted in any_probe()) {
        let text = wanted.to_string();
        let found = probe(&text, &[]);
        prop_assert_eq!(found.as_ref(), Ok(&wanted), "{}", text);
    }

    #[test]
    fn a_value_is_read_as_it_was_printed(wanted in value(), function_wanted in any_function()) {
        prop_assert_eq!(returned(&wanted.to_string()).map(|capture| capture.value), Ok(wanted));
        let text = function_wanted.to_string();
        prop_assert_eq!(function(&text), Ok(function_wanted), "{}", text);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in ".*", containers: bool) {
        let selectors: Vec<_> = containers.then(|| selector("id:1").unwrap()).into_iter().collect();
        if let Err(refusal) = probe(&text, &selectors) {
            prop_assert!(refusal.column <= text.chars().count());
            prop_assert_eq!(refusal.to_string().lines().count(), 3);
        }
        drop((function(&text), argument(&text, 0), returned(&text), binary(&text)));
    }

    #[test]
    fn no_text_like_a_probe_makes_a_parser_panic(
        text in "(host|pid=|[0-9]|web|\\[|\\]|name:|/a|\"|\\\\|:|::|lib|/|\\(|\\)|,|@|u8|bytes|->|_|\\+0x|usdt:| |ä|\\*){0,16}",
    ) {
        let Ok(found) = probe(&text, &[]) else { return Ok(()) };
        let printed = found.to_string();
        prop_assert_eq!(probe(&printed, &[]), Ok(found), "{}", printed);
    }
}
