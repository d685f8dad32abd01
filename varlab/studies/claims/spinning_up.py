"""Spinning Up in Deep RL (Achiam, 2018): every sentence on the policy gradient and its variance that can be tested.

The claims are in two files, in the order of the text: from the simplest policy gradient to the value baseline, then what follows
it and what the code adds.
"""

from varlab.studies.claims import spinning_up_text, spinning_up_practice  # noqa: F401, I001  (importing enters them, in this order)
