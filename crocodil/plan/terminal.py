"""A plan as a picture: a bar for the memory of one GPU, what is over the card in red, and what it all takes."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from crocodil.plan.planner import WHEN, Memory, Plan, Stage

PARTS: Mapping[str, tuple[str, str]] = {
    "weights": ("weights", "blue"),
    "gradients": ("gradients", "cyan"),
    "optimiser": ("optimiser", "magenta"),
    "average": ("average of weights", "bright_magenta"),
    "encoder_activations": ("activations, encoder", "green"),
    "demasker_activations": ("activations, demasker", "bright_green"),
    "loss": ("logits and loss", "yellow"),
    "buffers": ("engine's buffers", "bright_blue"),
    "context": ("CUDA and NCCL, assumed", "bright_black"),
}
"""What each part of the memory is called, and its colour."""
_FULL, _OVER, _FREE = "█", "▓", "·"


def headline(plan: Plan) -> str:
    """Whether it fits, in one line."""
    place, stage = plan.place, plan.worst
    where = f"{place.gpus} × {place.card.name}, {place.launch}, rows of {plan.row_tokens:,} tokens"
    room = (
        f"{_gb(stage.total)} of {_gb(place.card.memory)} GB a GPU {WHEN[stage.fullest]}, stage {stage.number}"
    )
    return f"{'Fits' if plan.fits else 'DOES NOT FIT'}: {room} ({where})"


def show(console: Console, plan: Plan) -> None:
    """Everything, for a person."""
    console.print(Text(headline(plan), style="bold green" if plan.fits else "bold red"), soft_wrap=True)
    console.print(_models(plan), style="dim")
    console.print()
    for stage in plan.stages:
        console.print(_bar(stage, plan, max(20, min(console.width, 110))))
    console.print(_memory(plan))
    if not plan.fits:
        console.print(_ways(plan))
    elif plan.largest_row_tokens is not None:
        console.print(f"There is room for rows of up to {plan.largest_row_tokens:,} tokens.\n")
    console.print(_costs(plan))
    console.print(_assumptions(plan), style="dim")


def bar(memory: Memory, card: float, width: int) -> Text:
    """One GPU's memory, `width` columns wide or a column more; the card ends at the stroke, what is behind it is red."""
    scale = width / max(card, memory.total)
    edge = round(card * scale)
    inside, over, at, drawn = Text(), Text(), 0.0, 0
    for name, (_, colour) in PARTS.items():
        at += getattr(memory, name)
        end = round(at * scale)
        within = max(0, min(end, edge) - drawn)
        inside.append(_FULL * within, style=colour)
        over.append(_OVER * (end - drawn - within), style="bold red")
        drawn = end
    inside.append(_FREE * (edge - drawn), style="dim")
    return Text.assemble(inside, ("│", "bold"), over)


def _bar(stage: Stage, plan: Plan, width: int) -> Text:
    memory, card = stage.memory, plan.place.card.memory
    trains = "LLaDA frozen" if stage.number == 1 else "everything trains"
    if stage.number == 2 and stage.trained < plan.parameters:
        trains = "adapters of both train"
    line = Text(f"stage {stage.number}, {trains}: ", style="bold")
    line.append(f"{_gb(memory.total)} GB", style="bold" if memory.total <= card else "bold red")
    line.append(f" {WHEN[stage.peak]}\n", style="dim")
    line.append_text(bar(memory, card, width - 1))
    return line.append("\n")


def _memory(plan: Plan) -> Table:
    table = Table(
        box=box.SIMPLE, title="GB on each GPU, at the fullest moment of a step", title_justify="left"
    )
    table.add_column("")
    table.add_column("")
    for stage in plan.stages:
        table.add_column(f"stage {stage.number}", justify="right")
    for name, (title, colour) in PARTS.items():
        values = [getattr(stage.memory, name) for stage in plan.stages]
        if any(values):
            table.add_row(
                Text(_FULL, style=colour), title, *(_gb(value) if value else "–" for value in values)
            )
    table.add_section()
    table.add_row("", "total", *(_total(stage.memory.total, plan) for stage in plan.stages), style="bold")
    for moment in WHEN:
        found = [stage.moments.get(moment) for stage in plan.stages]
        if any(found):
            totals = ("–" if one is None else _total(one.total, plan) for one in found)
            table.add_row("", WHEN[moment], *totals, style="dim")
    return table


def _costs(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE, title="What it takes", title_justify="left")
    table.add_column("")
    for stage in plan.stages:
        table.add_column(f"stage {stage.number}", justify="right")

    row, stages = table.add_row, plan.stages
    row("optimiser steps", *(f"{stage.steps:,}" for stage in stages))
    row("parameters that train", *(_short(stage.trained) for stage in stages))
    row("window tokens a step", *(_short(plan.step_tokens) for _ in stages))
    row("micro-batches a GPU and step", *(f"{plan.micro_steps}" for _ in stages))
    row("FLOPs computed a step", *(_short(stage.computed_flops) for stage in stages))
    row("  seconds a micro-batch", *(f"{stage.compute_seconds:.2g}" for stage in stages))
    row("received a GPU and micro-batch", *(f"{_gb(stage.micro_step_bytes)} GB" for stage in stages))
    row("  seconds", *(_late(stage) for stage in stages))
    row("received a GPU and step", *(f"{_gb(stage.step_bytes)} GB" for stage in stages))
    row("seconds a step", *(f"{stage.step_seconds:.3g}" for stage in stages))
    row("hours", *(_few(stage.hours) for stage in stages))
    if any(stage.host_bytes for stage in stages):
        row("optimiser in a node's host memory", *(f"{_gb(stage.host_bytes)} GB" for stage in stages))
        row(
            "  to and from it, a GPU and micro-batch",
            *(f"{_gb(stage.host_traffic)} GB" for stage in stages),
        )
    row("a checkpoint", *(f"{_gb(stage.checkpoint_bytes)} GB" for stage in stages))
    return table


def _late(stage: Stage) -> str:
    """Red where communication is what the step waits for."""
    seconds = f"{stage.micro_step_communication_seconds:.2g}"
    late = stage.micro_step_communication_seconds > stage.compute_seconds
    return f"[bold red]{seconds}[/]" if late else seconds


def _models(plan: Plan) -> str:
    own = plan.encoder_own_table_parameters
    table = "" if own is None else f" ({own:,} with its own table)"
    return f"{plan.parameters:,} parameters: LLaDA {plan.llada_parameters:,}, encoder {plan.encoder_parameters:,}{table}"


def _ways(plan: Plan) -> Text:
    if not plan.knobs:
        return Text(
            "No change of rows, recomputation, launch, number or kind of GPU makes it fit.\n", style="red"
        )
    lines = Text("It fits with any of\n", style="bold")
    for knob in plan.knobs:
        lines.append(f"  {knob.change:44}", style="green")
        lines.append(f" {_gb(knob.total)} GB\n")
    return lines


def _assumptions(plan: Plan) -> str:
    place = plan.place
    seen = f"{plan.texts:,} texts in all steps"
    if plan.epochs is not None:
        seen += f", {plan.epochs:.2f} epochs"
    between = f", {place.between / 1e9:.0f} GB/s between nodes" if place.nodes > 1 else ""
    return (
        f"{_few(plan.hours)} hours, {_few(plan.gpu_hours)} GPU hours; {seen}. The export is {_gb(plan.export_bytes)} GB; "
        f"building the model takes {_gb(plan.building_bytes)} GB of a node's host memory.\n"
        f"Assumed: an MFU of {100 * place.reached:.3g}% of {place.card.peak / 1e12:.0f} TFLOP/s for a step that trains "
        f"everything; collectives at {place.card.within / 1e9:.0f} GB/s a GPU within a node{between}, behind the "
        f"computation; a row of {plan.densest_texts} shortest windows with {plan.densest_registers:,} registers is the "
        "fullest. docs/planning.md says what is counted, and what is not."
    )


def _total(value: float, plan: Plan) -> str:
    return f"[bold red]{_gb(value)}[/]" if value > plan.place.card.memory else _gb(value)


def _gb(value: float) -> str:
    return _few(value / 1e9)


def _few(value: float) -> str:
    """One digit behind the point, more where there would be nothing else, none where there are many."""
    return (
        f"{value:,.0f}"
        if value >= 999.5
        else f"{value:.1f}"
        if value >= 0.095 or not value
        else f"{value:.2g}"
    )


def _short(value: float, units: str = " kMGTPE") -> str:
    """12,345,678 as 12.3 M."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{_few(value)} {unit}".rstrip()
        value /= 1000
    return f"{_few(value)} {units[-1]}"
