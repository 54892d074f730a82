"""What a run will need, before it is spent. Arithmetic on plain numbers; imports no torch.

`parameters`, `flops`, `memory`, `communication` count one thing each; `layouts` says which
layouts can work; `compute_curve` is the paper's comparison; `plan` puts them together;
`failures` plays a run on machines that break.
"""
