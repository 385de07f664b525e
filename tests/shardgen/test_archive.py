from shardgen.archive import natural


def test_numbers_in_names_sort_as_numbers_however_long_they_are() -> None:
    long = "9" * 5000  # Python makes no number of so many digits
    assert sorted(["g1", "f11", f"f{long}", "f010", "10", "f9", "", "f10a", "9", "f"], key=natural) == [
        "", "f", "f9", "f010", "f10a", "f11", f"f{long}", "g1", "9", "10",
    ]  # fmt: skip
    assert natural("f010") == natural("f10")
