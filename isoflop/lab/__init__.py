"""The lab: every claim is an experiment, with an interval and a verdict. A client of the trainer and of the planner's
rates.

claim         one TOML file: statement, arms, what is held equal, prediction, rule · fields  its parts · claims/  those
              that ship
compare       the same from the command line
arms          a claim's arms as configurations · procedures/  what can be run with an arm and a seed
damage        the text of an arm, damaged or of some sources · spelling  generated pairs
run           a claim from its start to its verdict · course, outcome · study  its jobs
workers       runs jobs on this machine · cluster, remote  on the machines of a Ray cluster
store         what is on record
stats         fixed-sample tests and sample sizes · anytime  tests that allow any looks · verdict  the rule
trend         from several sizes to a larger one · sizes  on a claim's page
page          a page per claim · conditions  its second half · front  of all · wording, drawn  their words and figures
recorded      recorded verdicts, and how far unfinished claims are
account       the stages of a chain of runs
"""
