"""Variable group sizes in verl: trainer modes that installing this package adds to verl's own.

    python -m verl.trainer.main_ppo trainer.v1.trainer_mode=knapsack +trainer.v1.knapsack.strategy=cautious ...

verl finds `plugin` through its entry point. What a run could only find out later is refused at its start (`checks`,
`data`). The driver opens a step at the budget keeper, a Ray actor that owns the allocator (`keeper`); the agent-loop
workers run what it places and report each rollout as soon as it is scored (`agent_loop`); the trainer reads the rest of
verl's configuration, and saves the allocator with verl's checkpoints (`trainer`). `relied_on` lists what of verl all
this overrides. docs/verl.md has more.
"""
