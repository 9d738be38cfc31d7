"""Counts of shards, added up."""

from ziya_data.factory.tally import SAMPLES, Tally


def test_samples_of_many_shards_are_bounded_and_every_part_and_source_has_its_own() -> None:
    total = Tally()
    for source in ("a", "b"):
        for shard in range(1000):
            for part in ("preprocess", "rules"):
                samples = [{"part": part, "id": f"{source}:{shard}-{i}"} for i in range(3)]
                total.add(Tally(samples=samples))
    assert len(total.samples) == 2 * 2 * SAMPLES
    first = [f"a:{shard}-{i}" for shard in range(4) for i in range(3)]
    assert [sample["id"] for sample in total.samples if sample["part"] == "rules"][:SAMPLES] == first
