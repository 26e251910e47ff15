"""The same few programs in each of the ten languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Case:
    """``greets``: writes ``Grüße 🦊``, its standard input's line and the text of ``data/words.txt``. ``exits``: with 3.
    ``broken``: no program, of which ``complaint`` is said. ``endless`` and ``hungry``: take all time and all memory.
    ``busy``: an ordinary program with eight threads or processes, or what the language has of that; writes 36.
    ``library``: no entry point, None where a language knows no such thing. ``bad_library``: the same, broken."""

    greets: str
    exits: str
    broken: str
    complaint: str
    endless: str
    hungry: str
    busy: str
    library: str | None = None
    bad_library: str | None = None


CASES: Final[Mapping[str, Case]] = {
    "python": Case(
        greets='print("Grüße 🦊", input(), open("data/words.txt").read())',
        exits="raise SystemExit(3)",
        broken="def f(:",
        complaint="SyntaxError",
        endless="while True: pass",
        hungry="x = []\nwhile True: x.append(bytearray(10**6))",
        busy="""
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor(8) as pool: print(sum(pool.map(abs, range(1, 9))))
        """,
    ),
    "javascript": Case(
        greets="""
            const fs = require("fs");
            console.log("Grüße 🦊", fs.readFileSync(0, "utf8").trim(), fs.readFileSync("data/words.txt", "utf8"));
        """,
        exits="process.exit(3)",
        broken="function f( {",
        complaint="SyntaxError",
        endless="while (true) {}",
        hungry="const x = []; while (true) x.push(new Array(100000).fill(0.5))",
        busy="""
            const { Worker } = require("worker_threads");
            const work = "require('worker_threads').parentPort.postMessage(18)";
            const answer = () => new Promise((done) => new Worker(work, { eval: true }).on("message", done));
            Promise.all([answer(), answer()]).then(([a, b]) => console.log(a + b));
        """,
    ),
    "typescript": Case(
        greets="""
            import fs from "fs";
            enum Place { Here = "data/words.txt" }
            const line: string = fs.readFileSync(0, "utf8").trim();
            console.log("Grüße 🦊", line, fs.readFileSync(Place.Here, "utf8"));
        """,
        exits="const code: number = 3; process.exit(code)",
        broken="const code: number = ;",
        complaint="error TS1109",
        endless="while (true) {}",
        hungry="const x: number[][] = []; while (true) x.push(new Array(100000).fill(0.5))",
        busy="""
            class Sum<T extends number> {
                constructor(private readonly parts: T[]) {}
                async all(): Promise<number> {
                    return (await Promise.all(this.parts.map(async (part) => part))).reduce((a, b) => a + b, 0);
                }
            }
            new Sum([1, 2, 3, 4, 5, 6, 7, 8]).all().then((sum) => console.log(sum));
        """,
    ),
    "java": Case(
        greets="""
            import java.nio.file.*;
            import java.util.Scanner;
            public class Greeting {
                public static void main(String[] arguments) throws Exception {
                    String line = new Scanner(System.in).nextLine();
                    System.out.println("Grüße 🦊 " + line + " " + Files.readString(Path.of("data/words.txt")));
                }
            }
        """,
        exits="class Exit { public static void main(String[] arguments) { System.exit(3); } }",
        broken="class Broken { public static void main(String[] arguments) { int x = } }",
        complaint="illegal start of expression",
        endless="class Endless { public static void main(String[] arguments) { while (true) {} } }",
        hungry="""
            class Hungry {
                public static void main(String[] arguments) {
                    var all = new java.util.ArrayList<byte[]>();
                    while (true) all.add(new byte[1 << 20]);
                }
            }
        """,
        busy="""
            import java.util.concurrent.*;
            import java.util.stream.*;
            class Busy {
                public static void main(String[] arguments) throws Exception {
                    var pool = Executors.newFixedThreadPool(8);
                    var parts = IntStream.rangeClosed(1, 8).mapToObj(n -> pool.submit(() -> n)).toList();
                    int sum = 0;
                    for (var part : parts) sum += part.get();
                    pool.shutdown();
                    System.out.println(IntStream.range(0, sum).parallel().map(n -> 1).sum());
                }
            }
        """,
        library="import java.util.List;\npublic class Sums { int sum(List<Integer> all) { return all.size(); } }",
        bad_library="public class Sums { int sum() { return missing; } }",
    ),
    "cpp": Case(
        greets="""
            #include <fstream>
            #include <iostream>
            #include <string>
            int main() {
                std::string line, words;
                std::getline(std::cin, line);
                std::getline(std::ifstream("data/words.txt"), words);
                std::cout << "Grüße 🦊 " << line << " " << words << std::endl;
            }
        """,
        exits="int main() { return 3; }",
        broken="int main() { return }",
        complaint="expected primary-expression",
        endless="int main() { for (volatile int n = 0;; ) n = n; }",
        hungry="int main() { for (;;) for (volatile char& byte : *new char[1][1 << 20]) byte = 1; }",
        busy="""
            #include <atomic>
            #include <cstdio>
            #include <thread>
            #include <vector>
            int main() {
                std::atomic<int> sum = 0;
                std::vector<std::jthread> threads;
                for (int n = 1; n <= 8; n++) threads.emplace_back([&, n] { sum += n; });
                threads.clear();
                std::printf("%d\\n", sum.load());
            }
        """,
        library="// to be called by main()\nint sum(int a, int b) { return a + b; }",
        bad_library="int sum(int a) { return a + b; }",
    ),
    "rust": Case(
        greets="""
            use std::{fs, io};
            fn main() {
                let mut line = String::new();
                io::stdin().read_line(&mut line).unwrap();
                println!("Grüße 🦊 {} {}", line.trim(), fs::read_to_string("data/words.txt").unwrap());
            }
        """,
        exits="fn main() { std::process::exit(3) }",
        broken='fn main() { let number: i32 = "text"; }',
        complaint="mismatched types",
        endless="fn main() { loop {} }",
        hungry="fn main() { let mut all = Vec::new(); loop { all.push(vec![1u8; 1 << 20]); } }",
        busy="""
            use std::thread;
            fn main() {
                let threads: Vec<_> = (1..=8).map(|n| thread::spawn(move || n)).collect();
                println!("{}", threads.into_iter().map(|thread| thread.join().unwrap()).sum::<i32>());
            }
        """,
        library="/// ```\n/// fn main() { sum(1, 2); }\n/// ```\npub fn sum(a: i32, b: i32) -> i32 { a + b }",
        bad_library="pub fn longer(a: &str, b: &str) -> &str { a }",
    ),
    "php": Case(
        greets='<?php echo "Grüße 🦊 ", trim(fgets(STDIN)), " ", file_get_contents("data/words.txt"), "\\n";',
        exits="<?php exit(3);",
        broken="<?php function f( {",
        complaint="syntax error",
        endless="<?php while (true) {}",
        hungry='<?php $all = []; while (true) $all[] = str_repeat("x", 1000000);',
        busy="<?php $all = range(1, 1000000); echo array_sum(array_slice($all, 0, 8)), PHP_EOL;",
    ),
    "shell": Case(
        greets='read -r line; echo "Grüße 🦊 $line $(cat data/words.txt)"',
        exits="exit 3",
        broken="if true; then",
        complaint="syntax error",
        endless="while :; do :; done",
        hungry="all=x; while :; do all=$all$all; done",
        busy="for n in 1 2 3 4 5 6 7 8; do echo $n & done | sort | awk '{ sum += $1 } END { print sum }'",
    ),
    "csharp": Case(
        greets="""
            using System;
            using System.IO;
            class Greeting {
                static void Main(string[] arguments) {
                    Console.WriteLine($"Grüße 🦊 {Console.ReadLine()} {File.ReadAllText("data/words.txt")}");
                }
            }
        """,
        exits="class Exit { static int Main() { return 3; } }",
        broken="class Broken { static void Main() { int number = ; } }",
        complaint="error CS1525",
        endless="class Endless { static void Main() { while (true) {} } }",
        hungry="""
            class Hungry {
                static void Main() {
                    var all = new System.Collections.Generic.List<object>();
                    while (true) all.Add(System.Linq.Enumerable.ToArray(System.Linq.Enumerable.Range(0, 100000)));
                }
            }
        """,
        busy="""
            using System;
            using System.Linq;
            using System.Numerics;
            using System.Threading.Tasks;
            class Busy {
                static void Main() {
                    var parts = Enumerable.Range(1, 8).Select(n => Task.Run(() => new BigInteger(n))).ToArray();
                    Console.WriteLine(Task.WhenAll(parts).Result.Aggregate((a, b) => a + b));
                }
            }
        """,
        library="public class Sums { public int Sum(int a, int b) { return a + b; } }",
        bad_library="public class Sums { public int Sum(int a) { return a + missing; } }",
    ),
    "swift": Case(
        greets="""
            import Foundation
            let words = try! String(contentsOfFile: "data/words.txt", encoding: .utf8)
            print("Grüße 🦊", readLine()!, words)
        """,
        exits="import Foundation\nexit(3)",
        broken="let number: Int = ",
        complaint="error:",
        endless="while true {}",
        hungry="var all: [[Int]] = []\nwhile true { all.append(Array(repeating: all.count, count: 100_000)) }",
        busy="print((1...8).reduce(0, +))",
    ),
}
