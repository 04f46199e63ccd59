"""What a training of the joint model costs, before anything is rented: memory, traffic, time, checkpoints.

Everything is counted from shapes: no weights are read, nothing is downloaded and no process is started. Formulas are
small functions with their derivation beside them; `tests/plan` holds them against memory that was measured.

    released.py      shapes of the released networks, by their names on the hub
    networks.py      which networks a configuration trains, and every parameter of them
    rows.py          micro-batches: how many positions each network meets
    activations.py   what a forward keeps for its backward
    launches.py      what an engine keeps on a GPU, gathers and sends, by launch file
    cards.py         GPUs: memory, peak, bandwidths
    work.py          FLOPs
    planner.py       all of it together, and what to change where it does not fit
    terminal.py      as a picture
"""
