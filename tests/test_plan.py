"""The plan: every accepted file means one thing, every other is a ConfigError that names file and field."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefl_secure.errors import ConfigError
from cachefl_secure.plan import (
    MAX_TOML_BYTES,
    FederationPlan,
    decode_toml,
    encode_toml,
    plan_digest,
    read_toml,
)
from cachefl_secure.privacy_plan import GridPlan
from cachefl_secure.server_plan import AdamServer, MeanServer

FIELDS: dict[str, Any] = {
    "version": 1,
    "protocol": "CF-SecAgg/1",
    "federation_id": "0123456789abcdef" * 2,
    "name": "retina",
    "coordinator_public_key": "ab" * 32,
    "channel": "inproc:",
    "classes": ["healthy", "drusen"],
    "encoder": {
        "model": "embedded",
        "pretrained": "",
        "weights_digest": "cd" * 32,
        "preprocessing_digest": "ba" * 32,
        "feature_dim": 64,
        "templates": ["a photo of {}.", "{}"],
    },
    "cache": {
        "images_per_class": 4,
        "alpha": 16.0,
        "alpha_norm": "sum",
        "beta": 5.5,
        "logit_scale": 100.0,
        "trained": "keys",
        "initial_digest": "ef" * 32,
    },
    "privacy": {
        "mechanism": "local",
        "clip_norm": 0.1,
        "noise_multiplier": 3.25,
        "sampling_rate": 1.0,
        "steps_per_round": 3,
        "proximal": 0.0,
        "replay_weight": 0.0,
        "expected_records": 1000,
        "learning_rate": 0.5,
        "rounds": 20,
        "delta": 1e-5,
        "epsilon_local": 8.0,
        "rdp_order": 8,
    },
    "secure_sum": {"minimum_cohort": 3, "minimum_survivors": 3, "colluders": 1, "dropout_percent": 10},
    "server": {"optimizer": "momentum", "momentum": 0.9, "rate": 1.0},
}

# One other legal value for every field that has one.
OTHER_VALUES: dict[str, Any] = {
    "federation_id": "f" * 32,
    "name": "retina-2",
    "coordinator_public_key": "ac" * 32,
    "classes": ["drusen", "healthy"],
    "encoder.model": "ViT-B-32",
    "encoder.pretrained": "openai",
    "encoder.weights_digest": "ce" * 32,
    "encoder.preprocessing_digest": "bb" * 32,
    "encoder.feature_dim": 65,
    "encoder.templates": ["{}", "a photo of {}."],
    "cache.images_per_class": 5,
    "cache.alpha": 16.000000000000004,
    "cache.alpha_norm": "mean",
    "cache.beta": 5.6,
    "cache.logit_scale": 99.0,
    "cache.initial_digest": "ee" * 32,
    "cache.trained": "class_residual",
    "privacy.clip_norm": 0.10000000000000002,
    "privacy.noise_multiplier": 3.5,
    "privacy.sampling_rate": 0.5,
    "privacy.steps_per_round": 2,
    "privacy.expected_records": 1001,
    "privacy.learning_rate": 0.25,
    "privacy.rounds": 21,
    "privacy.delta": 1e-6,
    "privacy.epsilon_local": 4.0,
    "privacy.rdp_order": 9,
    "privacy.proximal": 0.1,
    "privacy.replay_weight": 0.3,
    "server.momentum": 0.8,
    "server.rate": 0.5,
    "secure_sum.minimum_cohort": 4,
    "secure_sum.minimum_survivors": 2,
    "secure_sum.dropout_percent": 20,
    "secure_sum.colluders": 0,
}
ONE_VALUE_ONLY = {"version", "protocol", "channel", "privacy.mechanism", "server.optimizer"}


def plan_with(field: str = "name", value: Any = "retina") -> dict[str, Any]:
    """The fields above with one, ``a.b`` for a nested one, changed or added."""
    changed = msgspec.json.decode(msgspec.json.encode(FIELDS))
    *parents, last = field.split(".")
    table = changed
    for parent in parents:
        table = table[parent]
    table[last] = value
    return changed  # type: ignore[no-any-return]


def decoded(fields: dict[str, Any]) -> FederationPlan:
    return decode_toml(msgspec.toml.encode(fields), FederationPlan, file="plan.toml")


def names_of(fields: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from names_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def refusal(raw: bytes) -> ConfigError:
    with pytest.raises(ConfigError) as refused:
        decode_toml(raw, FederationPlan, file="plan.toml")
    assert refused.value.file == "plan.toml"
    return refused.value


def test_a_plan_survives_writing_and_reading(tmp_path: Path) -> None:
    plan = decoded(FIELDS)
    path = tmp_path / "plan.toml"
    path.write_bytes(encode_toml(plan))
    assert read_toml(path, FederationPlan) == plan
    assert plan_digest(read_toml(path, FederationPlan)) == plan_digest(plan)


@given(
    name=st.text(min_size=1, max_size=100),
    classes=st.lists(st.text(min_size=1, max_size=200), min_size=2, max_size=20, unique=True),
    noise=st.floats(min_value=1e-12, max_value=1e9),
)
def test_any_legal_text_and_number_survives_bit_by_bit(name: str, classes: list[str], noise: float) -> None:
    fields = plan_with("privacy.noise_multiplier", noise) | {"name": name, "classes": classes}
    plan = msgspec.convert(fields, FederationPlan)
    again = decode_toml(encode_toml(plan), FederationPlan, file="plan.toml")
    assert again == plan
    assert plan_digest(again) == plan_digest(plan)


def test_the_digest_does_not_depend_on_the_layout_of_the_file() -> None:
    tidy = encode_toml(decoded(FIELDS)).decode()
    top, tables = tidy.split("\n[", 1)
    untidy = (
        "# a comment\n" + "\n\n".join(reversed(top.split("\n")))
        if "[\n" not in top
        else "# a comment\n" + top
    )
    untidy += "\n  [" + tables.replace(" = ", "   =\t").replace("16.0", "1.6e1")
    assert untidy != tidy
    plan = decode_toml(untidy.encode(), FederationPlan, file="plan.toml")
    assert plan_digest(plan) == plan_digest(decoded(FIELDS))


def test_every_field_has_another_value_to_try() -> None:
    assert set(names_of(FIELDS)) == set(OTHER_VALUES) | ONE_VALUE_ONLY


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_the_digest_changes_with_every_field(field: str) -> None:
    changed = decoded(plan_with(field, OTHER_VALUES[field]))
    assert plan_digest(changed) != plan_digest(decoded(FIELDS))


OTHER_MECHANISMS = {
    "none": {"noise_multiplier": None, "epsilon_local": None, "rdp_order": None},
    "distributed": {
        "steps_per_round": None,
        "proximal": None,
        "replay_weight": None,
        "epsilon_aggregate": 2.0,
    },
}


def plan_of(mechanism: str) -> dict[str, Any]:
    """The fields of another mechanism: None takes one away."""
    fields = plan_with("privacy.mechanism", mechanism)
    section = fields["privacy"] | OTHER_MECHANISMS.get(mechanism, {})
    fields["privacy"] = {name: value for name, value in section.items() if value is not None}
    return fields


@pytest.mark.parametrize("mechanism", OTHER_MECHANISMS)
def test_every_mechanism_has_a_section_of_its_own(mechanism: str) -> None:
    plan = decoded(plan_of(mechanism))
    assert plan.privacy.mechanism == mechanism
    assert decode_toml(encode_toml(plan), FederationPlan, file="plan.toml") == plan
    assert plan_digest(plan) != plan_digest(decoded(FIELDS))


def plan_of_a_grid(**changes: Any) -> dict[str, Any]:
    """The fields of a plan of one release of counts: None takes one away."""
    fields = {**plan_with("cache.trained", "keys")}
    del fields["server"]
    kept = ("noise_multiplier", "epsilon_local", "rdp_order", "expected_records", "delta")
    section = {name: fields["privacy"][name] for name in kept}
    section |= {
        "mechanism": "grid",
        "epsilon_aggregate": 1.0,
        "alphas": [1.0, 10.0],
        "betas": [1.0, 3.0, 5.5],
    }
    fields["privacy"] = {name: value for name, value in (section | changes).items() if value is not None}
    return fields


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(({name: None}, name) for name in ("alphas", "betas", "epsilon_aggregate", "noise_multiplier")),
        ({"alphas": [10.0, 1.0]}, "alphas must rise"),
        ({"alphas": []}, "alphas"),
        ({"betas": [3.0, 3.0]}, "betas must rise"),
        ({"betas": [-1.0, 3.0]}, "betas"),
        ({"betas": [1.0, float("inf")]}, "betas"),
        ({"alphas": [1.0], "betas": [1.0]}, "2 to 256 pairs"),
        ({"alphas": [float(x) for x in range(1, 130)], "betas": [1.0, 2.0]}, "2 to 256 pairs"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"rounds": 2}, "rounds"),
        ({"steps_per_round": 1}, "steps_per_round"),
        ({"head": "gda"}, "head"),
        ({"sampling_rate": 0.5}, "sampling_rate"),
    ],
    ids=str,
)
def test_a_grid_says_what_it_tries_and_nothing_of_training(change: dict[str, Any], reason: str) -> None:
    whole = decoded(plan_of_a_grid())
    assert isinstance(whole.privacy, GridPlan)
    assert whole.privacy.pairs[:4] == ((1.0, 1.0), (1.0, 3.0), (1.0, 5.5), (10.0, 1.0))
    assert (whole.privacy.rounds, whole.number_of_parameters, whole.is_one_release) == (1, 6, True)
    assert decode_toml(encode_toml(whole), FederationPlan, file="plan.toml") == whole
    assert reason in str(refusal(msgspec.toml.encode(plan_of_a_grid(**change))))


@pytest.mark.claim("C8")
def test_several_steps_a_round_cannot_be_said_of_distributed_noise() -> None:
    """Dividing the noise of several local steps by sqrt(h) is false; there is no field to ask for it."""
    fields = plan_of("distributed")
    fields["privacy"]["steps_per_round"] = 2
    assert "steps_per_round" in str(refusal(msgspec.toml.encode(fields)))
    for free in ("proximal", "replay_weight"):
        fields = plan_of("distributed")
        fields["privacy"][free] = 0.1
        assert free in str(refusal(msgspec.toml.encode(fields)))
    fields = plan_with("privacy.epsilon_aggregate", 2.0)
    assert "epsilon_aggregate" in str(refusal(msgspec.toml.encode(fields)))


@pytest.mark.parametrize(
    ("minimum_cohort", "minimum_survivors", "colluders", "honest"),
    [(3, 3, 1, 2), (3, 3, 0, 3), (5, 3, 1, 3), (5, 5, 1, 4), (10, 3, 2, 5), (3, 2, 0, 2)],
)
def test_honest_survivors_are_those_that_every_sum_has(
    minimum_cohort: int, minimum_survivors: int, colluders: int, honest: int
) -> None:
    fields = plan_with()
    fields["secure_sum"] |= {
        "minimum_cohort": minimum_cohort,
        "minimum_survivors": minimum_survivors,
        "colluders": colluders,
    }
    assert decoded(fields).secure_sum.honest_survivors == honest


@pytest.mark.parametrize("field", list(names_of(FIELDS)))
def test_a_value_of_the_wrong_type_names_its_field(field: str) -> None:
    assert refusal(msgspec.toml.encode(plan_with(field, {"x": 1}))).field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("protocol", "CF-SecAgg/0"),
        ("federation_id", "0123"),
        ("name", ""),
        ("coordinator_public_key", "AB" * 32),
        ("channel", "http://somewhere"),
        ("classes", ["one"]),
        ("encoder.feature_dim", 0),
        ("encoder.templates", []),
        ("cache.images_per_class", 1_000_001),
        ("cache.alpha", -1.0),
        ("cache.beta", 0.0),
        ("cache.alpha_norm", "max"),
        ("cache.trained", "values"),
        ("privacy.proximal", 1.0),
        ("privacy.replay_weight", -0.1),
        ("server.momentum", 1.0),
        ("server.rate", 0.0),
        ("server.optimizer", "sgd"),
        ("privacy.mechanism", "central"),
        ("privacy.rdp_order", 1),
        ("privacy.clip_norm", 1e13),
        ("privacy.noise_multiplier", -0.5),
        ("privacy.sampling_rate", 1.5),
        ("privacy.steps_per_round", 0),
        ("privacy.rounds", -1),
        ("privacy.delta", 1.0),
        ("privacy.delta", 0.0),
        ("secure_sum.minimum_cohort", 2),
        ("secure_sum.minimum_cohort", 1025),
        ("secure_sum.minimum_survivors", 1),
        ("secure_sum.dropout_percent", 51),
        ("secure_sum.colluders", -1),
    ],
)
def test_a_value_out_of_range_names_its_field(field: str, value: object) -> None:
    assert refusal(msgspec.toml.encode(plan_with(field, value))).field == field


@pytest.mark.parametrize("field", [f for f in names_of(FIELDS) if isinstance(OTHER_VALUES.get(f), float)])
@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-inf", "1e999"])
def test_no_number_may_be_infinite_or_nan(field: str, value: str) -> None:
    error = refusal(msgspec.toml.encode(plan_with(field, 123456.75)).replace(b"123456.75", value.encode()))
    assert field.split(".")[-1] in str(error)


@pytest.mark.parametrize("table", ["", "encoder.", "cache.", "privacy.", "secure_sum."])
def test_an_unknown_field_is_refused_by_name(table: str) -> None:
    error = refusal(msgspec.toml.encode(plan_with(f"{table}epsilom", 1)))
    assert "epsilom" in str(error)
    assert error.field == table.rstrip(".")


@pytest.mark.parametrize(
    "field", sorted(set(names_of(FIELDS)) & {"name", "classes", "privacy.delta", "cache.beta"})
)
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    raw = msgspec.toml.encode(plan_with(field, "GONE"))
    lines = [line for line in raw.split(b"\n") if b"GONE" not in line]
    assert field.split(".")[-1] in str(refusal(b"\n".join(lines)))


def test_a_pull_between_steps_needs_two_of_them() -> None:
    fields = plan_with("privacy.steps_per_round", 1)
    fields["privacy"]["proximal"] = 0.1
    assert "between the steps" in str(refusal(msgspec.toml.encode(fields)))


@pytest.mark.parametrize("server", [None, {"optimizer": "mean"}, {"optimizer": "adam", "rate": 0.05}])
def test_a_server_has_an_optimizer_and_adds_the_mean_unless_told_otherwise(server: Any) -> None:
    fields = plan_with("server", server)
    plan = decoded({name: value for name, value in fields.items() if value is not None})
    assert type(plan.server) is (AdamServer if server and "rate" in server else MeanServer)
    assert decode_toml(encode_toml(plan), FederationPlan, file="plan.toml") == plan


def test_a_class_that_stands_twice_is_refused() -> None:
    assert "twice" in str(refusal(msgspec.toml.encode(plan_with("classes", ["a", "b", "a"]))))


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_holds_the_class_name_exactly_once(template: str) -> None:
    assert "exactly one" in str(refusal(msgspec.toml.encode(plan_with("encoder.templates", [template]))))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mechanism": "none"}, "noise_multiplier"),
        ({"mechanism": "distributed"}, "steps_per_round"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"epsilon_local": 0.0}, "epsilon_local"),
    ],
)
def test_a_mechanism_and_its_noise_must_agree(change: dict[str, Any], field: str) -> None:
    fields = plan_with()
    fields["privacy"] |= change
    assert field in str(refusal(msgspec.toml.encode(fields)))


HOSTILE = {
    "dotted key of 20,000 parts": b".".join([b"a"] * 20_000) + b" = 1",
    "dotted header": b"[" + b".".join([b"a"] * 20_000) + b"]",
    "dotted quoted key": b".".join([b'"a"'] * 20_000) + b" = 1",
    "dotted key of escaped quotes": b".".join([rb'"\""'] * 40_000) + b" = 1",
    "dotted key after a multi-line string": b'x = {a = """\n""", ' + b".".join([b"b"] * 20_000) + b' = "y"}',
    "open brackets": b"a = " + b"[" * 100_000,
    "brackets": b"a = " + b"[" * 50_000 + b"]" * 50_000,
    "inline tables": b"a = " + b"{a = " * 40_000,
    "one long word": b"a" * 200_000,
    "quotes": b'"' * 200_000,
    "escaped quotes": rb"\"" * 100_000,
    "spaces": b"a" + b" " * 200_000,
    "too many digits": b"version = " + b"9" * 5_000,
    "too many hex digits": b"version = 0x" + b"f" * 5_000,
    "not UTF-8": b'name = "\xff\xfe"',
    "half a surrogate": rb'name = "\ud800"',
    "NUL": b"\0" * 100,
    "another format": b"\x80\x04\x95\x10\x00\x00\x00\x00",
    "empty": b"",
    "too large": b"#" * (MAX_TOML_BYTES + 1),
}


@pytest.mark.claim("C14")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_quickly(name: str) -> None:
    started = time.process_time()
    error = refusal(HOSTILE[name])
    assert time.process_time() - started < 8.0  # milliseconds in practice; unguarded, tomllib takes minutes
    assert len(str(error)) < 1_000


def test_dots_in_comments_and_strings_are_not_keys() -> None:
    raw = b"# see a.b.c.d.e.f.g.h.i.j.k\n" + msgspec.toml.encode(plan_with("name", "a.b.c.d.e.f.g.h.i.j.k"))
    assert decode_toml(raw, FederationPlan, file="plan.toml").name == "a.b.c.d.e.f.g.h.i.j.k"


@pytest.mark.claim("C14")
@given(st.binary(max_size=400))
def test_any_bytes_are_a_plan_or_a_config_error(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        decode_toml(raw, FederationPlan, file="plan.toml")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as refused:
        read_toml(tmp_path / "plan.toml", FederationPlan)
    assert refused.value.file.endswith("plan.toml")


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        decoded(FIELDS).name = "other"  # type: ignore[misc]
