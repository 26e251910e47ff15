"""Which class of a Java source is public, and which is the one to run, whatever stands around them."""

from __future__ import annotations

import time

import pytest

from services.sandbox.core.java import java_source

MAIN = "public static void main(String[] arguments) {}"


def named(code: str) -> tuple[str, str | None]:
    source = java_source(code)
    assert source["code"] == code
    return source["file"], source["entry"]


@pytest.mark.parametrize(
    ("code", "file", "entry"),
    [
        (f"public class Any {{ {MAIN} }}", "Any.java", "Any"),
        (f"class Any {{ {MAIN} }}", "Main.java", "Any"),
        (f"public final class Any<T extends Comparable<T>> implements Runnable {{ {MAIN} }}", "Any.java", "Any"),
        (f"public abstract sealed class Any permits B {{ {MAIN} }}\nfinal class B extends Any {{}}", "Any.java", "Any"),
        (f"class First {{}} class Second {{ {MAIN} }}", "Main.java", "Second"),
        (f"class First {{ {MAIN} }} class Second {{ {MAIN} }}", "Main.java", "First"),
        (f"public class Shown {{}} class Hidden {{ {MAIN} }}", "Shown.java", "Hidden"),
        (f"package org.example;\npublic class Any {{ {MAIN} }}", "Any.java", "org.example.Any"),
        (f"/* licence */ package org.example ;\nclass Any {{ {MAIN} }}", "Main.java", "org.example.Any"),
        (f"public interface Runs {{ {MAIN} }}", "Runs.java", "Runs"),
        (f"public record Point(int x, int y) {{ {MAIN} }}", "Point.java", "Point"),
        (f"public enum Color {{ RED, GREEN; {MAIN} }}", "Color.java", "Color"),
        (f"public @interface Mark {{}}\nclass Any {{ {MAIN} }}", "Mark.java", "Any"),
        (f"public class Größe$1 {{ {MAIN} }}", "Größe$1.java", "Größe$1"),
    ],
)
def test_names(code: str, file: str, entry: str | None) -> None:
    assert named(code) == (file, entry)


@pytest.mark.parametrize(
    "declared",
    [
        "public static void main(String... a)",
        "static public void main(String[] a)",
        "public static final void main(String a[])",
        "static void main (String[] a)",
        "public static synchronized\n        void\nmain(String[] a)",
    ],
)
def test_main_as_it_may_be_declared(declared: str) -> None:
    assert named(f"class Any {{ {declared} {{}} }}") == ("Main.java", "Any")


@pytest.mark.parametrize(
    "code",
    [
        "public class Any { void main(String[] a) {} }",
        "public class Any { static int main(String[] a) { return 0; } }",
        "public class Any { static void domain(String[] a) {} }",
        f"public class Any {{ static class Nested {{ {MAIN} }} }}",
        f"public class Any {{ // {MAIN}\n }}",
        f"public class Any {{ /* {MAIN} */ }}",
        f'public class Any {{ String s = "{MAIN}"; }}',
        f'public class Any {{ String s = """\n{MAIN}\n"""; }}',
    ],
)
def test_without_a_main_of_a_top_level_class_it_is_a_library(code: str) -> None:
    assert named(code) == ("Any.java", None)


@pytest.mark.parametrize(
    "before",
    [
        "// public class Other {",
        "/* public class Other { */",
        "/** See {@link Other}: { it's */",
        "class First { static class Nested { interface Deeper {} } }",
        "class First { public static class Nested { void f() { class Local {} } } }",
        'class First { String s = "} public class Other {"; }',
        'class First { String s = "\\"} public class Other {"; }',
        "class First { char open = '{', quote = '\\'', other = '\"', more = '{'; }",
        'class First { String s = """\n  } public class Other { "quoted" \\""" {\n  """; }',
        'class First { String url = "http://example.org/*"; } /* } */',
        "class First { Object o = new Object() { int[] n = { 1, 2 }; }; Class<?> c = First.class; }",
        "@Marked(First.class) class First {}",
    ],
)
def test_what_surrounds_it_does_not_matter(before: str) -> None:
    assert named(f"{before}\npublic class Any {{ {MAIN} }}") == ("Any.java", "Any")


@pytest.mark.parametrize("name", ["A" * 241, "Ä" * 121])
def test_names_that_no_file_can_have_are_left_to_the_compiler(name: str) -> None:
    assert named(f"public class {name} {{ {MAIN} }}") == ("Main.java", None)
    assert named(f"package {'a.' * 200}b; public class Any {{ {MAIN} }}") == ("Any.java", None)


@pytest.mark.parametrize(
    "part",
    ["/*", '"""\n\\', '"\\', "'\\", "\n", "public ", "public final ", "static ", "package ", "package a.", "{", " "],
)
def test_reading_a_hostile_source_takes_linear_time(part: str) -> None:
    began = time.perf_counter()
    java_source(part * 50_000)
    java_source("package " + part * 50_000 + "\\")
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("code", ["", "}}}{{{", '"', "'", "/*", '"""', "public class", "\udcff class A {"])
def test_what_is_no_java_has_a_file_all_the_same(code: str) -> None:
    assert named(code) == ("Main.java", None)
