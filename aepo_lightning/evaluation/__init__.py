"""Numbers that compare: benchmarks, their protocols, results that can be judged again, and statistics over questions.

Trajectories come from the sampler that training uses; what is new here is what is asked, under which limits, who looks
at the answers, and what may be concluded.
"""
