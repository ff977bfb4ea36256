"""Parameter groups, optimisers that torch lacks, and schedules as pure functions of the step."""
