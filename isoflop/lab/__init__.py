"""The lab: every claim is an experiment, with an interval and a verdict. A client of the trainer and of the planner's
rates.

claim         one TOML file: statement, arms, what is held equal, prediction, rule · claims/  those that are here
compare       the same from the command line
arms          a claim's arms as configurations · procedures/  what is done with each and a seed
run           one test from its claim to its verdict · course, outcome · study  its jobs · workers  who does them
store         what is on record
stats         fixed-sample tests and sample sizes · anytime  tests that allow any looks · verdict  the rule
page          what a reader sees of a claim · front  of all · wording, drawn  their words and figures
recorded      verdicts that are there
account       the stages of a chain of runs
"""
