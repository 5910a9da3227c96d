"""Options of init that say where the first cache keys come from, and what its operator is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.failures import say
from cachefl_secure_cli.panels import PICTURES

if TYPE_CHECKING:
    from cachefl_secure.federation.founding_choices import FoundingChoices, PictureChoices
    from cachefl_secure.federation.synthetic_images import FirstKeys

DEFAULT_GENERATOR = "black-forest-labs/FLUX.2-klein-4B"
"""Apache-2.0, as its publisher says; distilled to few steps. About 16 GB."""
_DEFAULT_STEPS, _DEFAULT_GUIDANCE = 4, 1.0

Generator = Annotated[
    str | None,
    typer.Option(
        help="embedded; a diffusers model id or local folder, text to image or class-conditional; folder:PATH, "
        "public pictures made elsewhere; features:PATH, public features (.npz, .safetensors or .npy); or text: no pictures, "
        f"keys from text features. Default: embedded with the embedded CLIP, else {DEFAULT_GENERATOR} (Apache-2.0), "
        "which is fetched.",
        show_default=False,
        rich_help_panel=PICTURES,
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        help='What a text-to-image generator is asked for: paper ("a photo of a {}."), dataset (the templates of '
        "--template in turn), or file:PATH (JSON of class to sentences, or one sentence with {} a line).",
        rich_help_panel=PICTURES,
    ),
]
Candidates = Annotated[
    int | None,
    typer.Option(
        help="Pictures to draw a class, of which the best K are kept. Default: 4 K.",
        show_default=False,
        rich_help_panel=PICTURES,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Of the generator. Default: its own.",
        show_default=False,
        min=1,
        max=1000,
        rich_help_panel=PICTURES,
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="Of the generator; distilled ones ignore it. Default: its own.",
        show_default=False,
        min=0.0,
        rich_help_panel=PICTURES,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--generator-revision",
        help="Commit or tag of the generator's model id.",
        show_default=False,
        rich_help_panel=PICTURES,
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Only the part of the generator that is at work is on the GPU.",
        rich_help_panel=PICTURES,
    ),
]
Licence = Annotated[
    str,
    typer.Option(
        help="Licence of pictures or features made elsewhere, if no card or file beside them says it.",
        rich_help_panel=PICTURES,
    ),
]


def picture_source(
    generator: str | None,
    clip: str | None,
    *,
    prompts: str,
    candidates: int | None,
    steps: int | None,
    guidance: float | None,
    revision: str | None,
    licence: str,
    offload: bool,
    offline: bool,
) -> tuple[str, PictureChoices]:
    """What to load, and how to draw with it.

    Raises:
        ConfigError: an option of drawing, with a source that draws nothing.
    """
    from cachefl_secure.errors import ConfigError
    from cachefl_secure.federation.founding_choices import PictureChoices, is_drawn

    of_drawing = {
        "--prompts": prompts != "paper",
        "--candidates": candidates is not None,
        "--steps": steps is not None,
        "--guidance": guidance is not None,
        "--generator-revision": revision is not None,
        "--offload": offload,
    }
    for option, given in of_drawing.items():
        if given and generator is not None and not is_drawn(generator):
            raise ConfigError(
                option, "", f"is about drawing pictures; with --generator {generator} none are drawn"
            )
    embedded = clip in (None, "embedded")
    source = generator or ("embedded" if embedded else DEFAULT_GENERATOR)
    if source == "embedded":
        from cachefl_secure.embedded import GENERATOR_DIR, GENERATOR_STEPS

        source, steps = str(GENERATOR_DIR), steps or GENERATOR_STEPS
    if source == DEFAULT_GENERATOR:
        steps, guidance = steps or _DEFAULT_STEPS, _DEFAULT_GUIDANCE if guidance is None else guidance
    choices = PictureChoices(
        prompts=prompts,
        candidates_per_class=candidates,
        steps=steps,
        guidance=guidance,
        revision=revision,
        licence=licence,
        offload=offload,
        offline=offline,
    )
    return source, choices


def tell_of_fetching(generator: str | None, choices: FoundingChoices) -> None:
    """That gigabytes will be loaded, where nobody has named the generator that they are of."""
    if generator is None and choices.generator == DEFAULT_GENERATOR and not choices.pictures.offline:
        say(
            f"no --generator: {DEFAULT_GENERATOR} (Apache-2.0) is fetched from the Hugging Face hub, about 16 GB, "
            "unless it is on this machine; it wants a GPU"
        )


def tell_of_keys(keys: FirstKeys) -> None:
    """What the operator should hear before anybody is invited."""
    from cachefl_secure.cache.pipeline_files import is_permissive

    origin = keys.origin
    if origin.kind != "text" and not is_permissive(origin.licence):
        say(
            f"{origin.name}: licence {origin.licence!r} is not Apache, MIT or BSD: read whether it binds models trained "
            "on what it covers; it is recorded in every cache of this federation"
        )
    if keys.without_picture and origin.kind != "text":
        names = ", ".join(f"{name} ({count})" for name, count in list(keys.without_picture.items())[:10])
        more = len(keys.without_picture) - 10
        say(
            f"too few pictures, so text features stand in as keys of: {names}"
            + (f" and {more} more" if more > 0 else "")
        )
    if keys.misread:
        say(f"the encoder takes {keys.misread} of the kept pictures for another class than they should show")
