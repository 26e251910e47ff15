"""Whether a value looks like a password, a key, a user name or a person's name, or rather like a word of the program."""

from __future__ import annotations

import re
from typing import Final

# Frequent given names that are no other English word, for "Maria Fernandez" in free text. Far from complete.
GIVEN_NAMES: Final = frozenset(
    "Aaron Abdul Abigail Adam Adrian Agnes Ahmed Aisha Alan Albert Alejandro Alessandro Alex Alexander Alexandra Alfred "
    "Ali Alice Alicia Amanda Amit Amy Ana Andrea Andreas Andrew Angela Anna Anne Anthony Antonio Arjun Arthur Barbara "
    "Benjamin Bernard Bob Brandon Brenda Brian Bruno Camille Carl Carlos Carol Caroline Catherine Charles Chris "
    "Christina Christine Christopher Claire Claudia Daniel Daniela David Deborah Dennis Diana Diego Dmitri Dominik "
    "Donald Donna Dorothy Douglas Edward Elena Elizabeth Emily Emma Eric Erik Eugene Eva Fatima Felix Fernando "
    "Francesca Francisco Frederik Gabriel Gary Geoffrey George Gerald Giovanni Giulia Greta Gustav Hannah Hans Harold "
    "Hassan Heather Heidi Helen Henry Hiroshi Hugo Ian Ibrahim Igor Ingrid Isabella Ivan Jacob James Jan Jane Janet Jason "
    "Javier Jeffrey Jennifer Jeremy Jessica Jim Joan Joe Johan Johannes John Jonas Jonathan Jose Joseph Joshua Joyce Juan "
    "Judith Julie Jürgen Karen Karin Karl Katarina Katherine Kathleen Katja Keith Kelly Kenji Kenneth Kevin Khalid Klaus "
    "Lars Laura Lauren Leila Linda Lisa Lucas Lucia Luigi Luis Lukas Magnus Manuel Marco Marcus Margaret Maria Marie "
    "Mario Marta Martha Martin Martina Mary Matthew Megan Mehmet Melissa Michael Michelle Miguel Mohamed Mohammed Monica "
    "Muhammad Nadia Nancy Natalia Nathan Nicholas Nicole Nikolai Nina Olga Oliver Olivia Oskar Pablo Pamela Patricia "
    "Patrick Paul Paula Pavel Pedro Peter Petra Philip Pierre Priya Rachel Rahul Rajesh Ralph Raymond Rebecca Ricardo "
    "Richard Robert Roberto Roger Roland Ronald Rosa Roy Russell Ruth Ryan Samantha Samuel Sandra Sanjay Sara Sarah "
    "Scott Sean Sebastian Sergei Sharon Simon Sofia Sophia Sophie Stefan Stefano Stephanie Stephen Steven Sunil Susan "
    "Susanne Svetlana Sven Tatiana Teresa Theodore Theresa Thomas Timothy Tobias Tomas Ulrich Ursula Valentina Vanessa "
    "Vijay Vikram Vincent Vladimir Walter Wei Wendy William Wolfgang Yan Yusuf Zachary Zoe".split()
)

_PARTICLES: Final = frozenset("al bin da das de del den der di dos du el ibn la le ten ter van von y zu".split())
_NO_SURNAME: Final = frozenset(
    "a all an and are api app associates at author authors can co code collaborators community company consortium "
    "contributors copyright corp corporation created data default developers did does error file first for foundation "
    "from full gmbh google group had has have hello id inc institute is key last license licensed limited llc ltd "
    "microsoft my name no not of on or organisation organization owner product project public rights said says says "
    "service services software some studio system systems team technologies test the this to type university unknown "
    "updated user users version visual was will with you your".split()
)

_NO_VALUE: Final = frozenset(
    "admin administrator anonymous any auth author authenticated basic bearer bool boolean client confirm current "
    "customer default disabled email empty enabled error example false file forbidden guest hidden id int integer "
    "invalid key label localhost login logout max min missing missing_token name new nil nobody none null number object "
    "oauth old optional owner pass passwd password plain plaintext placeholder postgres private profile public pwd "
    "required reset role root runner secret select self service signup str string submit system test text token true "
    "type ubuntu undefined unknown update user user_name username users value varchar www-data yes no".split()
)
_TEMPLATE: Final = re.compile(
    r"%(?:\(\w+\))?[sdr]|\{\{.*\}\}|\{[\w.:!]*\}|\$[A-Z_][A-Z0-9_]*|\$\{[^}]*\}.*|\$\(.*|\$\d|\?|[:@][a-z_]+|<[^<>]*>|\[[\w -]*\]"
    r"|[*xX.•_-]+|\^.*\$"
)
_INTERPOLATION: Final = re.compile(r"\$\{|#\{|\\\(|\{\}|\{\d\}")
_WORD: Final = re.compile(r"[A-Za-z]+(?:[_ -][A-Za-z]+)*")
_WORD_OF_PROGRAM: Final = re.compile(r"(?:your|my|the|insert|enter|some|new)[_ -]|password|passwd|username|_token|_key|_user")
_KEY: Final = re.compile(r"[\w.~+/=:-]{10,4000}")
_USER_NAME: Final = re.compile(r"[A-Za-z][\w.-]{1,63}")
_DIGIT: Final = re.compile(r"\d")
_NAME_PART: Final = re.compile(r"[ ]?([^\W\d_](?:[^\W\d_]|['’-](?=[^\W\d_])){0,30}\.?)")


def is_stand_in(value: str, *, prefix: str = "") -> bool:
    """Whether a literal's text is no value but a template, an example's stand-in or a word such as ``required``."""
    if _TEMPLATE.fullmatch(value) or _INTERPOLATION.search(value) or value.strip().lower() in _NO_VALUE:
        return True
    if "f" in prefix or "$" in prefix:
        return "{" in value
    lower = value.lower()
    return _WORD.fullmatch(value) is not None and _WORD_OF_PROGRAM.search(lower) is not None


def is_password(value: str) -> bool:
    """A password has no white space, or is up to three words with a digit. Paths, addresses of pages: no."""
    if len(value) < 3 or value.startswith(("/", "./")) or "://" in value or "\n" in value:
        return False
    words = value.split()
    return len(words) == 1 or (len(words) <= 3 and _DIGIT.search(value) is not None and ":" not in value)


def is_key(value: str) -> bool:
    """At least ten characters without white space, letters and digits among them, eight of them different."""
    return (
        _KEY.fullmatch(value) is not None
        and "://" not in value
        and _DIGIT.search(value) is not None
        and any(character.isalpha() for character in value)
        and len(set(value)) >= 8
    )


def is_user_name(value: str) -> bool:
    """One word that begins with a letter; accounts that belong to nobody (``root``, ``admin``, ``guest``) are none."""
    return _USER_NAME.fullmatch(value) is not None and not is_stand_in(value)


def is_person(value: str, *, single: bool) -> bool:
    """Whether all of ``value`` is a person's name: two to five capitalised words, or one if ``single``."""
    text = value.strip()
    return bool(text) and person_length(text, fewest=1 if single else 2) == len(text)


def person_length(text: str, *, fewest: int = 2) -> int:
    """How many characters at the start of ``text`` are a person's name of at least ``fewest`` words; 0 for none."""
    length, position, words = 0, 0, 0
    while words < 5 and (match := _NAME_PART.match(text, position)):
        part = match[1].rstrip(".")
        initial = len(part) == 1 and match[1].endswith(".")
        particle = words > 0 and part in _PARTICLES
        if part.lower() in _NO_SURNAME or not (particle or part[0].isupper()):
            break
        if position and not match[0].startswith(" "):
            break
        position, words = match.end(), words + 1
        if not particle and not (initial and words == 1 and fewest == 1):
            length = position if initial else match.start(1) + len(part)
        if match[1].endswith(".") and not initial:
            break  # the end of a sentence
    following = text[position : position + 40].split()
    if words < fewest or (following and following[0].lower().rstrip(".,") in _NO_COMPANY_AFTER):
        return 0
    return length


_NO_COMPANY_AFTER: Final = frozenset(
    "inc llc ltd gmbh corp corporation foundation project group team technologies university systems software "
    "contributors authors".split()
)
