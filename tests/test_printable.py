from aepo_lightning.printable import printable


def test_a_terminal_obeys_nothing_of_what_others_wrote():
    assert printable("plain ü 世") == "plain ü 世"
    assert printable("a\x1b[2Jb\rc\nd\u202e") == "a\N{REPLACEMENT CHARACTER}[2Jb" + "".join(
        f"\N{REPLACEMENT CHARACTER}{each}" for each in ("c", "d", "")
    )
