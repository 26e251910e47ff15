"""A program in each language with every kind of header, each marked with ``▸`` where it begins."""

from __future__ import annotations

from typing import Final

MARK: Final = "▸"

PYTHON: Final = """
# if x:
@größe
▸class Stack(Base):
    text = "é"; other = [i for i in y if i] if z else "for x in y:"

    @property
    ▸def top(self,
            n):
        ▸for item in self:  # first
            ▸if item:
                return lambda: item
            ▸elif not item:
                pass
        ▸while "é" in self:
            pass

▸async def go():
    async with a: pass
    ▸async for a in b: pass
"""

JAVASCRIPT: Final = """
// é: if (x) {
/* ü */ ▸class Ärger extends Base {
  static #n = 'ö';
  ▸constructor(x) { super(x); }
  ▸get größe() { /* é */ ▸if (this.x) return 1; }
  ▸async *gen() {
    ▸for await (const x of y) yield x;
  }
}
const é = "if (a) {", ü = a ? b : c; ▸const g = (x) => {
  ▸while (true) break;
};
▸var h = function () {}, k = function* () {};
export default ▸async function go(a,
    b) {
  ▸for (let i = 0; i < 3; i++) { xs.map(x => x); }
  ▸for (const k in o) f(`for (${k}`);
  ▸do {
    i--;
  } while (i);
  ▸if (a) {
  } else ▸if (b) {
  } else {
  }
  switch (x) { default: }
  try { } catch (e) { }
}
▸function* numbers() {}
const o = { ▸method() {} };
"""

TYPESCRIPT: Final = """
@Component({ name: 'é' })
export ▸abstract class Größe<T> {
  @dec() ▸private foo(x: number): void {
    ▸for (const é of this.xs) { ▸if (é) { } else ▸if (x) { } }
    ▸for (let i = 0; i < 3; i++) { }
    ▸while (x) { }
    ▸do { } while (x);
  }
  abstract bar(): void;
  ▸constructor(private x: T) { }
}
▸interface Shape { area(): number; }
▸enum Colour { Red }
declare function declared(x: number): void;
function over(x: string): void;
▸function over(x: any) { return x ? 'if (x) {' : y; }
type Name = X extends Y ? 1 : 2;
namespace N {
  export ▸const f = async <T,>(x: T): Promise<T> => { return x; };
}
▸function* numbers(): Generator<number> { }
▸var square = function (x: number) { return x * x; };
▸class Plain { }
▸for (const k in o) { }
"""

JAVA: Final = """
package größe;
@Deprecated // é
/* ü */ ▸public class Größe<T> extends Base {
  static { run(); }
  String é = "if (x) {"; int ö = x ? 1 : 2;
  @Override
  ▸public void f(int... xs) throws E {
    ▸for (int i = 0; i < 3; i++) { }
    ▸for (var x : xs) { }
    ▸do { } while (x);
    ▸while (x) { }
    ▸if (x) {
    } else ▸if (y) {
    }
    Runnable r = () -> { };
    new Base() { ▸void in() { } };
    switch (x) { default: }
  }
  @Inject ▸Größe() { super(); }
  abstract int g();
}
▸interface Shape { int area(); ▸default int k() { return 1; } }
▸enum Colour { RED }
▸record Point(int x) {
  ▸Point { }
}
▸@interface Marker { int v() default 1; }
"""

CPP: Final = """
#include <x>
#if FOO // é
#endif
#define M(x) if (x) {
template <typename T>
▸class Node : public Base<T> {
 public:
  ▸Node() : x(1) { }
  ▸~Node() = default;
  void prototype();
  friend class Other; class Nested *member;
  ▸operator bool() const { return true; }
  struct Node *next;
};
▸struct S { int x; } s; /* é */ ▸enum class C { X };
▸union U { int a; };
[[nodiscard]] ▸static inline auto f(int x) -> int {
  auto é = "if (x) {"; ▸for (int i = 0; i < 3; ++i) { }
  ▸for (auto& x : xs) { }
  ▸while (x) { }
  ▸do { } while (x);
  ▸if constexpr (x) {
  } else ▸if (y) {
  }
  auto l = [&](int x) { return x; };
  return x ? 1 : 2;
}
int prototype(int);
"""

RUST: Final = """
// é: if x {
#[derive(Debug)]
▸pub struct Größe<'a> { x: &'a str }
▸struct Unit;
▸enum E { A }
▸union V { a: u32 }
▸pub trait Shape {
    fn area(&self) -> f64;
    ▸fn twice(&self) -> f64 { 2.0 }
}
▸impl<'a> Shape for Größe<'a> {
    #[inline]
    ▸pub async unsafe fn area(&self) -> f64 {
        let é = "if x {"; ▸for x in y { }
        ▸'outer: while let Some(x) = z { }
        ▸loop { break; }
        let v = ▸if x { 1 } else ▸if y { 2 } else { 3 };
        let c = |x| { x };
        match x { Ok(_) if x => { } }
        let Some(q) = w else { return; };
    }
}
macro_rules! m { () => { if x { } } }
mod inner { ▸fn f() { } }
"""

PHP: Final = """
// é: if (x) {
#[Attr]
▸function größe($x) {
    $é = "if ($x) {"; ▸for ($i = 0; $i < 3; $i++) { }
    ▸foreach ($a as $b) { }
    ▸while (true) { }
    ▸do { } while (1);
    ▸if ($x) {
    } ▸elseif ($y) {
    } else ▸if ($z) {
    }
    $c = function () { };
    $d = fn($x) => $x ? 1 : 2;
    switch ($x) { default: }
}
▸abstract class A {
    #[X] ▸public function m() { }
    abstract function n();
    ▸function __construct(private int $x) { }
}
▸interface Shape { function area(); }
▸trait T { }
▸enum Suit: string { case A = 'a'; }
▸if ($a):
▸foreach ($x as $y):
endforeach;
endif;
"""

SHELL: Final = """#!/bin/bash
# é: if x; then
▸größe() { local x; }
▸function g {
  echo "é: for x in y; do"; ▸for x in a b; do :; done
  ▸for ((i = 0; i < 3; i++)); do :; done
  ▸while read -r x; do :; done < f
  ▸until x; do :; done
  ▸if [ x ]; then
    :
  ▸elif [[ y ]]; then
    :
  else
    :
  fi
}
case x in a) :;; esac
[ x ] && y
cat <<EOF
if x; then
EOF
"""

CSHARP: Final = """
using Größe;
namespace N {
  // é: if (x) {
  [Attr]
  ▸public abstract class A<T> : B where T : C {
    public int P { get { return 1; } set; }
    [X] ▸public A() : base() { }
    ▸~A() { }
    public abstract void F();
    ▸public static A operator +(A a, A b) => a;
    ▸public static implicit operator int(A a) { return 1; }
    ▸async Task G(int x) {
      var é = "if (x) {"; ▸for (;;) { }
      ▸foreach (var y in z) { }
      ▸await foreach (var q in y) { }
      ▸while (x) { }
      ▸do { } while (x);
      ▸if (x) {
      } else ▸if (y) {
      }
      ▸int Local(int q) => q;
      Func<int> f = () => { return 1; };
      switch (x) { default: break; }
      var v = x ? 1 : 2;
    }
  }
#if DEBUG
  ▸struct S { }
#endif
  ▸interface I { void M(); }
  ▸enum E { A }
  ▸record R(int X);
  delegate void D();
}
"""

SWIFT: Final = """
import Größe
// é: if x {
@objc
▸public class A: B {
  @objc ▸public func f(_ x: Int) throws -> Int {
    let é = "if x {"; ▸for x in y where z > 1 { }
    ▸while x { }
    ▸repeat { } while x
    ▸if let x = y {
    } else ▸if x {
    }
    ▸guard let q = w else { return 0 }
    let c = { (x: Int) in x }
    switch x { default: break }
    return x ? 1 : 2
  }
  ▸init?(x: Int) { }
  ▸deinit { }
  var p: Int { return 1 }
  ▸static func + (a: A, b: A) -> A { }
}
▸struct S { }
▸enum E { case a }
▸protocol P {
  func m()
  init(x: Int)
}
▸extension S: P { }
▸actor Q { }
#if DEBUG
#endif
"""

MARKED: Final = {
    "python": PYTHON, "javascript": JAVASCRIPT, "typescript": TYPESCRIPT, "java": JAVA, "cpp": CPP, "rust": RUST,
    "php": PHP, "shell": SHELL, "csharp": CSHARP, "swift": SWIFT,
}  # fmt: skip
CODE: Final = {lang: marked.replace(MARK, "") for lang, marked in MARKED.items()}


def expected_spans(marked: str) -> list[tuple[int, int]]:
    """Where the marks are, once they are taken out, to the end of their line (``\\n``, ``\\r\\n`` or ``\\r``)."""
    spans = []
    before = ""
    for part in marked.split(MARK)[:-1]:
        before += part
        rest = marked.replace(MARK, "")[len(before) :]
        spans.append((len(before), len(before) + len(rest.replace("\r", "\n").split("\n")[0])))
    return spans
