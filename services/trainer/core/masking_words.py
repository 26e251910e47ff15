"""Word lists of the masking rules."""

from __future__ import annotations

from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Frequent given names that are no other English word. Far from complete.
GIVEN_NAMES: Final = _words("""
    Aaron Abdul Abigail Adam Adrian Agnes Ahmed Aisha Alan Albert Alejandro Alessandro Alex Alexander Alexandra
    Alfred Ali Alice Alicia Amanda Amit Amy Ana Andrea Andreas Andrew Angela Anna Anne Anthony Antonio Arjun Arthur
    Barbara Benjamin Bernard Bob Brandon Brenda Brian Bruno Camille Carl Carlos Carol Caroline Catherine Charles
    Chris Christina Christine Christopher Claire Claudia Daniel Daniela David Deborah Dennis Diana Diego Dmitri
    Dominik Donald Donna Dorothy Douglas Edward Elena Elizabeth Emily Emma Eric Erik Eugene Eva Fatima Felix
    Fernando Francesca Francisco Frederik Gabriel Gary Geoffrey George Gerald Giovanni Giulia Greta Gustav Hannah
    Hans Harold Hassan Heather Heidi Helen Henry Hiroshi Hugo Ian Ibrahim Igor Ingrid Isabella Ivan Jacob James Jan
    Jane Janet Jason Javier Jeffrey Jennifer Jeremy Jessica Jim Joan Joe Johan Johannes John Jonas Jonathan Jose
    Joseph Joshua Joyce Juan Judith Julie Jürgen Karen Karin Karl Katarina Katherine Kathleen Katja Keith Kelly
    Kenji Kenneth Kevin Khalid Klaus Lars Laura Lauren Leila Linda Lisa Lucas Lucia Luigi Luis Lukas Magnus Manuel
    Marco Marcus Margaret Maria Marie Mario Marta Martha Martin Martina Mary Matthew Megan Mehmet Melissa Michael
    Michelle Miguel Mohamed Mohammed Monica Muhammad Nadia Nancy Natalia Nathan Nicholas Nicole Nikolai Nina Olga
    Oliver Olivia Oskar Pablo Pamela Patricia Patrick Paul Paula Pavel Pedro Peter Petra Philip Pierre Priya Rachel
    Rahul Rajesh Ralph Raymond Rebecca Ricardo Richard Robert Roberto Roger Roland Ronald Rosa Roy Russell Ruth Ryan
    Samantha Samuel Sandra Sanjay Sara Sarah Scott Sean Sebastian Sergei Sharon Simon Sofia Sophia Sophie Stefan
    Stefano Stephanie Stephen Steven Sunil Susan Susanne Sven Svetlana Tatiana Teresa Theodore Theresa Thomas
    Timothy Tobias Tomas Ulrich Ursula Valentina Vanessa Vijay Vikram Vincent Vladimir Walter Wei Wendy William
    Wolfgang Yan Yusuf Zachary Zoe
""")

# Within a person's name, in small letters.
PARTICLES: Final = _words("""
    al bin da das de del den der di dos du el ibn la le ten ter van von y zu
""")

# Capitalised words that are no part of a person's name.
NO_NAME: Final = _words("""
    a all an and api app are associates at author authors can co code collaborators community company consortium
    contributors copyright corp corporation created data default developers did does error file first for foundation
    from full gmbh google group had has have hello id inc institute is key last license licensed limited llc ltd
    microsoft my name no not of on or organisation organization owner product project public rights said says
    service services software some studio system systems team technologies test the this to type university unknown
    updated user users version visual was will with you your
""")

# What follows the name of an organisation.
COMPANY: Final = _words("""
    authors contributors corp corporation foundation gmbh group inc llc ltd project software systems team
    technologies university
""")

# Values that are words of the program, or accounts that belong to nobody.
NO_VALUE: Final = _words("""
    active admin administrator anonymous any auth authenticated author basic bearer bool boolean client confirm
    current customer default disabled email empty enabled error example expired false file forbidden found guest
    hidden id inactive int integer invalid key label localhost login logout max min missing missing_token name new
    nil no nobody none null number oauth object offline old online optional owner pass passwd password pending pi
    placeholder plain plaintext postgres private profile public pwd required reset role root runner secret select
    self service signup str string submit system test text token true type ubuntu undefined unknown update user
    user_name username users valid value varchar www-data yes
""")

# Last words of an identifier that say nothing about its kind: ``db_password_prod``.
SUFFIXES: Final = _words("""
    const default dev literal local plain prod production staging str string test text value
""")

# Last words of identifiers of keys.
KEYS: Final = _words("""
    accesskey accesstoken apikey apitoken authtoken bearer credential credentials jwt secretkey token
""")

# What stands before ``key`` where that is a secret.
KEY_QUALIFIERS: Final = _words("""
    access account api app auth encryption license master private secret shared signing storage subscription
""")

# Whose names are personal.
PEOPLE: Final = _words("""
    assignee author authors contact creator customer developer doctor employee maintainer manager owner patient
    person recipient reviewer sender student supervisor teacher
""")

# Functions of these verbs return a message or a verdict about a user or a password, not the thing itself.
NO_GETTERS: Final = _words("""
    add append ask assert can change check clean clear confirm create decode decrypt delete disable enable encode
    encrypt ensure format greet handle has hash insert is log login logout mask normalize notify parse print process
    prompt register remove rename render reset save send set sign test update validate verify welcome write
""")
