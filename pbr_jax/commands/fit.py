"""Says what a train step needs on a graphics card, by every method, before anything runs.

    pbr fit --config configs/vit_b16.py --gpu rtx4090
    pbr fit --config configs/vit_b16.py --gpu 8GiB --config.batch_size=64 --json
    pbr fit mymodule:step --gpu rtx4090
    pbr fit --config configs/vit_b16.py --gpu h200 --devices 16 --hosts 2 --link 100Gbit

The real train step is compiled for the card, which need not be there, by the packages of the extra
`gpu-compiler`; where they are absent the figures are those of a formula, and it says so. A method
fits if its peak and the reserve are within the card's memory. Step times are arithmetic, as a
fraction of full fine-tuning's, or with --times measured. Exit code 1: no method fits, or one could
not be compiled.

A step of one's own is any JAX function, with its arguments as `step_args` beside it: a tuple of
arrays or of jax.ShapeDtypeStruct, or a function that returns one. Its memory is printed, with the
largest arrays at the fullest moment.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pbr_jax.commands import fit_step
from pbr_jax.configs.common import SIZE, Config, size_in_bytes, within
from pbr_jax.files import DamagedFile, read_bytes, user_path
from pbr_jax.gpu import CARDS, Card, find_card, parse_target_config, present_card, sized_card
from pbr_jax.measure.text import format_bytes
from pbr_jax.memory import fit
from pbr_jax.memory.budget import RESERVE, measure_for
from pbr_jax.memory.cost import read_times
from pbr_jax.memory.network import LINK, Network
from pbr_jax.memory.table import Table, print_table, to_json, to_markdown
from pbr_jax.runs.progress import Terminal, progress
from pbr_jax.settings.flags import add_config, number_faults
from pbr_jax.settings.load import ConfigError
from pbr_jax.settings.ties import tie_faults
from pbr_jax.settings.variants import method_names, split_methods


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "step", nargs="?", metavar="MODULE:FUNCTION", help="of your own, in place of --config"
    )
    parser.add_argument(
        "--args", metavar="NAME", help="its example arguments; default: FUNCTION_args beside it"
    )
    add_config(parser)
    parser.add_argument(
        "--gpu",
        metavar="NAME|SIZE",
        help=f"{', '.join(CARDS)}, or a memory such as 8GiB; default: the GPU of this machine",
    )
    parser.add_argument(
        "--gpu-file", type=user_path, metavar="FILE", help="a card described as docs/fit.md says"
    )
    parser.add_argument("--methods", metavar="A,B", help="instead of all methods and plans")
    parser.add_argument(
        "--devices", type=int, metavar="N", help="cards that share the batch, in all, as mesh.data"
    )
    parser.add_argument(
        "--hosts",
        type=int,
        metavar="M",
        help="machines in which they stand, as many in each; default: one",
    )
    parser.add_argument(
        "--link",
        metavar="RATE",
        help="of the network of a host, which its cards share, or on one host of a card, such as"
        " 100Gbit or 450GB/s: adds times of steps by arithmetic",
    )
    parser.add_argument(
        "--reserve", default=RESERVE, metavar="SIZE", help="memory left free, default %(default)s"
    )
    parser.add_argument(
        "--times",
        type=user_path,
        metavar="FILE",
        help="what `pbr bench step --out FILE` measured on this card, in place of arithmetic",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; progress goes to stderr")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    parser.add_argument(
        "--no-largest", action="store_true", help="leave out the search for the largest batch"
    )
    parser.add_argument("--no-cache", action="store_true", help="compile all of it again")


def main(args: argparse.Namespace) -> int:
    if not args.debug:  # XLA's warnings on batches that do not fit would tear the progress bar
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    config: Config = args.arguments.config
    if args.devices is not None:
        mesh = dataclasses.replace(config.mesh, data=args.devices)
        config = dataclasses.replace(config, mesh=mesh)
    card, names, reserve, times = _read(args, config)
    network = Network(config.mesh.data or 1, args.hosts or 1, args.link or "")
    if args.step is not None:
        # Its memory does not depend on the configuration.
        out = None if args.json else Terminal(highlight=False)
        return fit_step.show(args.step, args.args, card, reserve, out)
    with measure_for(card, cache=not args.no_cache, hosts=network.hosts) as (measure, missing):
        target = fit.Target(card, reserve, measure)
        with progress(f"methods on {card.name}", len(names)) as done:
            rows = fit.fit_methods(
                config,
                names,
                target,
                times,
                lambda found: done(found.method),
                largest=not args.no_largest,
            )
    # One table, in the form that was asked for.
    table = Table(config, card, reserve, tuple(rows), missing, network)
    if args.json:
        print(json.dumps(to_json(table), indent=2))
    elif args.markdown:
        print(to_markdown(table))
    else:
        print_table(table, Terminal(highlight=False), args.arguments.spec)
    if not any(row.fits for row in rows):
        print(table.smallest_need(), file=sys.stderr)
    failed = any(row.fault and not row.indivisible for row in rows)
    return int(failed or not any(row.fits for row in rows))


def _read(
    args: argparse.Namespace, config: Config
) -> tuple[Card, list[str], int, Mapping[str, float]]:
    """The card, the methods, the reserve and measured times; every fault at once."""
    unused = (
        ("methods", "times", "markdown", "no_cache", "no_largest", "devices", "hosts", "link")
        if args.step is not None
        else ("args",)
    )
    names, faults = split_methods(args.methods or ",".join(method_names(config)))
    faults += number_faults(
        "--devices", within(1, 2**16), *([] if args.devices is None else [args.devices])
    )
    faults += _network_faults(args, config)
    faults += [] if faults else tie_faults(config, ())
    card: Card | None = None
    times: Mapping[str, float] = {}
    try:
        card = _card(args.gpu, args.gpu_file)
        times = _times(args.times, card, config) if args.times else {}
    except ValueError as error:
        faults.append(str(error))
    whose = "is of methods" if args.step is not None else "is of MODULE:FUNCTION"
    faults += [
        f"--{flag.replace('_', '-')}: {whose}; leave it out" for flag in unused if vars(args)[flag]
    ]
    reserve = 0 if args.reserve == "0" else size_in_bytes(args.reserve)
    if reserve is None:
        faults.append(f"--reserve {args.reserve}: {SIZE.text}, or 0")
    elif card is not None and reserve >= card.memory_bytes:
        room = format_bytes(card.memory_bytes)
        faults.append(f"--reserve {args.reserve}: leaves nothing of the {room} of {card.name}")
    if faults:
        raise ConfigError(faults, "the command line", "`pbr fit --help` says more.")
    assert card is not None and reserve is not None
    return card, names, reserve, times


def _network_faults(args: argparse.Namespace, config: Config) -> list[str]:
    """A line for each mistake in where the devices stand."""
    devices, given = config.mesh.data or 1, [] if args.hosts is None else [args.hosts]
    faults = number_faults("--hosts", within(1, 2**16), *given)
    if given and not faults and devices % args.hosts:
        rule = f"must divide the number of devices, {devices}; --devices says how many in all"
        faults.append(f"--hosts {args.hosts}: {rule}")
    if args.link is None:
        return faults
    if not LINK.holds(args.link):
        faults.append(f"--link {args.link}: {LINK.text}")
    if devices == 1 and args.step is None:
        faults.append("--link: joins several devices; say how many with --devices")
    return faults


def _times(file: Path, card: Card, config: Config) -> Mapping[str, float]:
    try:
        return read_times(file, card, config)
    except ValueError as error:
        raise ValueError(f"--times {error}") from None


def _card(gpu: str | None, file: Path | None) -> Card:
    if gpu is not None and file is not None:
        raise ValueError("--gpu and --gpu-file: give one of them")
    if file is not None:
        try:
            text = read_bytes(file, "give a file as docs/fit.md says").decode()
        except ValueError as error:  # no file, or no UTF-8
            fault = error if isinstance(error, DamagedFile) else f"{file}: is not UTF-8"
            raise ValueError(f"--gpu-file {fault}") from None
        return parse_target_config(text, str(file))
    # Nothing given: the card of this machine. Else a size, or a name of the table.
    if gpu is None:
        if (card := present_card()) is not None:
            return card
        names = ", ".join(CARDS)
        advice = f"name one ({names}), or a memory such as 8GiB, or give --gpu-file"
        raise ValueError(f"--gpu: JAX sees no GPU here; {advice}")
    if (size := size_in_bytes(gpu)) is not None:
        return sized_card(gpu, size)
    try:
        return find_card(gpu)
    except ValueError as error:
        text = str(error).removeprefix("name = ")
        advice = "or give a memory such as 8GiB, or --gpu-file for a card of your own"
        raise ValueError(f"--gpu {text}; {advice}") from None
