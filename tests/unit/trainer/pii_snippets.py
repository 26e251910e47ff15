"""Labelled code for the masking tests: personal data, secrets, and what only looks like them.

A label is written ``«KIND|value»``. A ``·`` inside a value is dropped on reading: it keeps scanners for leaked secrets
from taking this file for a leak. All values are invented.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Snippet:
    lang: str
    code: str
    labels: tuple[tuple[int, int, str], ...]  # start, end (characters of ``code``), kind


def snippets() -> list[Snippet]:
    """All of the labelled set, the positives first."""
    return [_read(lang, marked) for lang, marked in (*POSITIVES, *NEGATIVES, *HELD_OUT)]


def held_out() -> list[Snippet]:
    """Written after the rules, and not looked at while they were written."""
    return [_read(lang, marked) for lang, marked in HELD_OUT]


def _read(lang: str, marked: str) -> Snippet:
    code, labels, last = "", [], 0
    for match in re.finditer(r"«(\w+)\|(.*?)»", marked, re.DOTALL):
        code += marked[last : match.start()]
        value = match[2].replace("·", "")
        labels.append((len(code), len(code) + len(value), match[1]))
        code, last = code + value, match.end()
    return Snippet(lang=lang, code=code + marked[last:], labels=tuple(labels))


POSITIVES = [
    # E-mail addresses
    ("python", 'def get_admin_email():\n    return "«EMAIL|mira.tolund@corp-mail.org»"\n'),
    ("python", "send(to='«EMAIL|j.doe+alerts@sub.firma.co.uk»', cc=['«EMAIL|ops@firma.de»'])\n"),
    ("python", 'TEXT = "Questions?\\n«EMAIL|help.desk@norrland.se»\\n"\n'),
    ("python", "# ask «EMAIL|petra@firma.de» before changing this\nx = a@b.weight\n"),
    ("java", '/** Contact: «EMAIL|k.lund@bank.no». */\nString to = "mailto:«EMAIL|k.lund@bank.no»";\n'),
    ("javascript", 'const el = <a href="mailto:«EMAIL|sales@widgets.io»">«EMAIL|sales@widgets.io»</a>;\n'),
    ("shell", "echo done | mail -s report «EMAIL|anna_b@uni-ulm.de»\n"),
    ("yaml", "notify:\n  - «EMAIL|oncall@team.dev»\n"),
    ("cpp", 'const char* to = "«EMAIL|x99@lab.example.com»"; // «EMAIL|x99@lab.example.com»\n'),
    # IP addresses
    ("python", 'def get_database_host():\n    return "«IP_ADDRESS|10.23.4.117»"\n'),
    ("python", 'HOSTS = ["«IP_ADDRESS|192.168.17.4»", "«IP_ADDRESS|2001:db8:0:42::8a2e»"]\n'),
    ("go", 'conn, err := net.Dial("tcp", "«IP_ADDRESS|172.16.254.9»:5432")\n'),
    ("shell", "ping -c1 «IP_ADDRESS|84.17.3.201» && ssh «IP_ADDRESS|10.0.0.12»\n"),
    ("rust", 'let url = "http://[«IP_ADDRESS|fe80::1ff:fe23:4567:890a»]:80/";\n'),
    ("csharp", 'var re = "Allow from\\t«IP_ADDRESS|62.4.10.9»\\n"; // was «IP_ADDRESS|62.4.10.8»\n'),
    ("java", 'allow("«IP_ADDRESS|10.40.0.0»/16");\n'),
    # Keys and tokens
    ("python", 'client("«KEY|AKIA·Q7Z2M4LX6PVT9RWB»", region="eu-west-1")\n'),
    ("python", 'aws_secret_access_key = "«KEY|wJ4lrXUtn·FEMI/K7MDENG/bPxRfiCYzz81Qp3v0»"\n'),
    ("shell", 'curl -H "Authorization: token «KEY|ghp_·16C7e42F292c6912E7710c838347Ae178B4a»" $URL\n'),
    ("javascript", "const slack = '«KEY|xoxb·-2183746501-k3JhG7dPq1ZsXvB9»';\n"),
    ("python", 'jwt = "«KEY|eyJ·hbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.Jf36POk6yJV_adQssw5c»"\n'),
    (
        "python",
        'KEY = """«KEY|-----BEGIN RSA ·PRIVATE KEY-----\nMIIEpAIBA7bq\nq9+Zx0=\n-----END RSA PRIVATE KEY-----»"""\n',
    ),
    ("go", 'const apiKey = "«KEY|9f8a7c6e5d4b3a2190ffeeddccbbaa77»"\n'),
    ("yaml", "stripe:\n  secret_key: «KEY|sk_·live_4eC39HqLyjWDarjtT1zdp7dc»\n"),
    ("php", "$config['api_token'] = '«KEY|hT7-kQ2_zW9xLp4vR8nB»';\n"),
    ("csharp", 'var client = new Client(accessToken: "«KEY|q8ZrT5vYw2XcN7mK1pLd»");\n'),
    ("typescript", 'headers: { Authorization: "Bearer «KEY|mF_9.B5f-4.1JqMzx82Tt»" }\n'),
    ("python", 'SECRET = "«KEY|n0t-so-s3cret!»"\n'),
    # Passwords
    ("python", 'def get_service_password():\n    return "«PASSWORD|q7!Zp%s-+w$Ab1»"\n'),
    ("python", "password = '«PASSWORD|hunter2»'\n"),
    ("python", 'conn = connect(host=h, user="«USER_NAME|jlindqvist»", password="«PASSWORD|Tr0ub4dor&3»")\n'),
    ("python", 'CONFIG = {"db": {"passwd": "«PASSWORD|s3cr3t pass»"}}\n'),
    ("python", 'if password == "«PASSWORD|letmein»":\n    grant()\n'),
    ("python", 'pw = os.environ.get("DB_PASSWORD", "«PASSWORD|Winter2021»")\n'),
    ("java", 'private static final String DB_PASSWORD = "«PASSWORD|Pa55-w0rd»";\n'),
    ("java", 'public String getPassword() {\n    return "«PASSWORD|zaq12wsx»";\n}\n'),
    ("java", 'dataSource.setPassword("«PASSWORD|m4gic»");\nprops.put("password", "«PASSWORD|m4gic2»");\n'),
    ("cpp", 'std::string admin_pwd = "«PASSWORD|opensesame9»";\n'),
    ("csharp", 'var cs = "Server=db;User Id=«USER_NAME|svc_olsen»;Password=«PASSWORD|B1rch!tree»;";\n'),
    ("shell", "export PGPASSWORD=«PASSWORD|pgSuper99»\nmysql --user=«USER_NAME|kbauer» --password=«PASSWORD|x9x8x7»\n"),
    ("shell", "curl -u «USER_NAME|tveit»:«PASSWORD|G4rden» https://api/\n"),
    ("yaml", "db:\n  username: «USER_NAME|mhansen»\n  password: «PASSWORD|Fj0rd-blue»\n"),
    ("php", "define('DB_PASSWORD', '«PASSWORD|r00tbeer»');\n"),
    ("rust", 'fn admin_password() -> String {\n    "«PASSWORD|crabby77»".to_string()\n}\n'),
    ("swift", 'let password: String = "«PASSWORD|sw1ftly»"\n'),
    ("typescript", 'const getPassword = (): string => "«PASSWORD|typeScr1pt»";\n'),
    ("python", "URL = 'postgres://«USER_NAME|ekman»:«PASSWORD|v1kings»@db.internal:5432/app'\n"),
    ("python", "# old login: password=«PASSWORD|d1nosaur»\n"),
    ("python", "cur.execute(\"ALTER USER app SET password = '«PASSWORD|qu3ry!»'\")\n"),
    ("python", 'requests.get(url, auth=("«USER_NAME|lnguyen»", "«PASSWORD|rainy-day»"))\n'),
    # User names
    ("python", 'def get_deploy_user():\n    return "«USER_NAME|kfenris0042»"\n'),
    ("javascript", "const opts = { username: '«USER_NAME|bmarley77»', port: 22 };\n"),
    ("python", "# TODO(«USER_NAME|pschmidt»): remove\nx = 1\n"),
    ("java", '@Test void t() { login.setUsername("«USER_NAME|agarcia»"); }\n'),
    ("csharp", 'if (userName == "«USER_NAME|okonkwo»") return;\n'),
    ("python", "d['login'] = '«USER_NAME|vpetrov»'\n"),
    # Person names
    ("python", 'def get_account_owner():\n    return "«NAME|Rosa Pelin-Torlund»"\n'),
    ("python", '__author__ = "«NAME|Håkan Lindström»"\n'),
    ("java", "/**\n * @author «NAME|Jane K. Doe»\n */\nclass A {}\n"),
    ("cpp", "// Copyright (c) 2019 «NAME|Tobias Engel». All rights reserved.\nint x;\n"),
    ("python", "# Author: «NAME|Mei-Ling O'Hara» <«EMAIL|mei@ohara.net»>\nx = 1\n"),
    ("python", 'emp = Employee(first_name="«NAME|Siobhan»", last_name="«NAME|Keane»")\n'),
    ("javascript", 'const c = { customerName: "«NAME|Ravi Chandran»", plan: "Gold Plan" };\n'),
    ("csharp", '// Created by «NAME|Pavel Novak» on 3/4/2020\nvar manager = "«NAME|Ingrid Solberg»";\n'),
    ("python", 'print("Please call «NAME|Maria Fernandez» about the invoice")\n'),
    ("python", 'def assign(task):\n    """Ask «NAME|Thomas Becker» for access."""\n'),
    # Person names that only a model can find
    ("python", 'print("the patient, «NAME|Oyelaran Adebisi», was seen")\n'),
    ("go", "// as discussed with «NAME|Zsofia» in the meeting\n"),
    # Not to be found by a name's rule: a password in a list without a name
    ("python", 'for guess in ["«PASSWORD|qwe!rty9»"]:\n    unlock(guess)\n'),
]

NEGATIVES = [
    ("python", "password = input()\nuser = get_user()\ntoken = next(tokens)\n"),
    ("python", "password = \"\"\nuser = ''\napi_key = None\n"),
    ("python", "import secrets\nfrom tokens import token\nsecret = secrets.token_hex(16)\n"),
    ("python", 'password = getpass.getpass("Password: ")\nuser = input("User name: ")\n'),
    ("python", 'pw = os.environ["DB_PASSWORD"]\nuser = os.getenv("DB_USER")\n'),
    ("python", 'app.run(host="0.0.0.0", port=80)\nsock.connect(("127.0.0.1", 80))\nh = "localhost"\n'),
    ("python", '__version__ = "1.2.3.4"\nrequires = ["lib==4.10.0.84"]\n'),
    ("python", 'y = w1@w2.T + layer@x.data\nmask = "255.255.255.0"\n'),
    ("python", 'class User:\n    username: str = "username"\n    password: "Secret"\n'),
    ("python", 'FIELDS = ["username", "password", "email", "full_name"]\n'),
    ("python", 'url = f"postgres://{user}:{password}@{host}/db"\nlog(f"user={user} password={password}")\n'),
    ("python", 'cur.execute("SELECT * FROM users WHERE user = %s AND password = %s", (u, p))\n'),
    ("python", 'raise ValueError("Invalid password: too short")\nerror = "User not found"\n'),
    ("python", 'def create_user(name):\n    return "created"\n\ndef check_password(p):\n    return "weak"\n'),
    ("python", 'def f(password: str, user: "User" = None):\n    """:param password: the password of the user"""\n'),
    ("python", 'token = "("\nif token == "identifier":\n    key = "name"\n'),
    ("python", 'parser.add_argument("--password", help="Password of the user")\n'),
    ("python", 'if role == "admin" and user == "root":\n    title = "Machine Learning"\n'),
    ("python", 'print("Hello World")\nname = "Blue Widget"\nprint("New York", "Red Cross")\n'),
    ("python", '"""Copyright 2020 Google LLC. Licensed under the Apache License, Version 2.0."""\n'),
    ("python", "# TODO: use the author's token\n# user: the name of the user\n# password: see the wiki\n"),
    ("python", 'x = d["password"]\nhashed = hash_password(d.get("user"))\n'),
    ("python", 'icon = "logo@2x.png"\nrepo = "git@github.com:org/repo.git"\n'),
    ("python", 't = "12:30:45"\nmac = "00:1b:44:11:3a:b7"\nidx = "[::2]"\noid = "1.3.6.1.4.1.311"\n'),
    ("python", 'digest = "d41d8cd98f00b204e9800998ecf8427e"\nuuid = "123e4567-e89b-12d3-a456-426614174000"\n'),
    ("python", 'api_key = "YOUR_API_KEY"\ntoken = "<your token here>"\nsecret = "${SECRET}"\n'),
    ("javascript", '<input type="password" name="password" placeholder="Password" />\n'),
    ("javascript", "const { user, password } = req.body;\nif (!password) throw new Error('password required');\n"),
    ("typescript", "interface Login { username: string; password: string; token?: string }\n"),
    (
        "typescript",
        "const schema = { password: 'required', username: 'string' };\n@Component({ selector: 'app-user' })\n",
    ),
    ("java", '@Value("${db.password}") private String password;\nString user = System.getenv("USER");\n'),
    ("java", 'public String getUser() { return user; }\nlog.info("user logged in");\n'),
    ("java", 'if (password.equals("")) { throw new Error("Empty Password"); }\nMap<String, String> token;\n'),
    ("cpp", 'std::cout << "Enter password: ";\nstd::string user = argv[1]; auto p = a::b::c;\n'),
    ("csharp", 'public string Password { get; set; }\nvar s = $"{user}:{password}@{host}";\n'),
    ("rust", "fn f<'a>(user: &'a str, password: &'a str) -> &'a str { user }\n"),
    ("go", 'password := os.Getenv("PASSWORD")\nfmt.Println("token:", token)\n'),
    ("shell", 'read -s -p "Password: " password\nUSER=$1\nTOKEN=$(cat token.txt)\nPASSWORD="$2"\n'),
    ("shell", "set -euo pipefail\nif [ -z \"$PASSWORD\" ]; then echo 'Usage: run --user NAME --password PASS'; fi\n"),
    ("yaml", "password: ${DB_PASSWORD}\nuser: null\nimage: repo/app:1.4.2.9\nversion: 1.2.3.4\n"),
    ("php", "$password = $_POST['password'];\n$user = getUser('id');\n"),
    ("swift", 'let password = passwordField.text\nlabel.text = "User Name"\n'),
]

HELD_OUT = [
    ("python", 'class Settings:\n    smtp_user = "«USER_NAME|t.okafor»"\n    smtp_pass = "«PASSWORD|mail-4-all»"\n'),
    ("python", 'ENGINE = create_engine("mysql+pymysql://«USER_NAME|hr_app»:«PASSWORD|9uYt$re»@db/hr")\n'),
    ("python", 'smtp.login("«EMAIL|billing@nordfisk.no»", "«PASSWORD|c0d-and-chips»")\n'),
    (
        "python",
        'connect(host="«IP_ADDRESS|10.9.8.7»", username="«USER_NAME|deployer3»", password="«PASSWORD|Sk1pper»")\n',
    ),
    (
        "python",
        'def test(post):\n    post(json={"username": "«USER_NAME|cmueller»", "password": "«PASSWORD|abc12345»"})\n',
    ),
    ("python", 'openai.api_key = "«KEY|sk-·aB3dE5fG7hI9jK1lM3nO5pQ7»"\n'),
    ("python", 'bot = Bot(token="«KEY|61789·43210:AAHk9-_uYx2Lm3Nn4Oo5Pp6Qq7Rr8Ss»")\n'),
    ("python", '"""Parser.\n\nWritten by «NAME|Dieter Vogel», 2014.\n"""\nuser_agent = "Mozilla/5.0 (X11)"\n'),
    ("python", 'PATIENTS = [{"name": "«NAME|Oluwaseun Adeyemi»", "age": 44}]\n'),
    (
        "python",
        'def current_user():\n    if DEBUG:\n        return "«USER_NAME|sjohansson»"\n    return session["user"]\n',
    ),
    ("java", 'Connection c = DriverManager.getConnection(url, "«USER_NAME|orders_rw»", "«PASSWORD|Gr33nTea»");\n'),
    ("java", '@Override\nprotected String adminEmail() { return "«EMAIL|root.admin@hafen.de»"; }\n'),
    ("java", 'String query = "token=«KEY|a81bc81bdead4e5dabff90865d1e13b1»&page=1";\n'),
    (
        "javascript",
        "mongoose.connect('mongodb+srv://«USER_NAME|webshop»:«PASSWORD|n1ghtOwl»@cluster0.mongodb.net/shop');\n",
    ),
    (
        "javascript",
        "// eslint-disable-next-line -- «NAME|Karin Bergström» asked for it\nfetch(`/u/${user}?token=${token}`);\n",
    ),
    ("typescript", 'const owner = { firstName: "«NAME|Amélie»", lastName: "«NAME|Dubois»", role: "Product Owner" };\n'),
    ("csharp", 'var credentials = new NetworkCredential("«USER_NAME|pbrandt»", "«PASSWORD|W!nd0ws»");\n'),
    ("csharp", 'private const string ClientSecret = "«KEY|7Qe~8sLmPq2Rt.Uv4Wx»";\nstring title = "Sign In";\n'),
    (
        "go",
        'db := C{User: "«USER_NAME|ledger_ro»", Password: "«PASSWORD|5nowFall»", Host: "«IP_ADDRESS|10.77.1.20»"}\n',
    ),
    ("rust", 'let password = String::from("«PASSWORD|b0rrowck»");\n'),
    ("cpp", '#define WIFI_SSID "cafe"\n#define WIFI_PASSWORD "«PASSWORD|espress0!»"\n'),
    ("php", "$dbh = new PDO($dsn, '«USER_NAME|wp_shop»', '«PASSWORD|s4lty»'); // user and password\n"),
    ("shell", 'sshpass -p "«PASSWORD|gr4phite»" ssh «EMAIL|lena@build.firma.de»\n'),
    ("shell", "API_KEY='«KEY|k3y-77aa88bb99cc»' ./run.sh --dry-run\n"),
    ("yaml", "maintainer: «NAME|Lars Holm» <«EMAIL|lars@holm.dk»>\nservice: payments\n"),
    ("swift", 'func defaultUserName() -> String { return "«USER_NAME|apple_seed1»" }\n'),
    ("python", 'HELP = "login with your user name and password"\nSTATUS = {"user": "active", "token": "expired"}\n'),
    ("java", 'log.warn("Password for user {} expired", user);\nsetTitle("Owner"); setOwner(owner);\n'),
    ("typescript", "type Role = 'user' | 'owner'; const labels = { user: 'Users', password: 'Change password' };\n"),
    ("go", 'if user == "" { return errors.New("no user") }\nconst ver = "v10.0.19.45"\n'),
]
