"""Published claims about the variance of policy gradients, each with a study that decides it and a control that must fail."""
