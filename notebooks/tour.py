# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour of memroof
#
# Three questions that cost money to answer by trial: how long is a training step, how fast does a served model answer,
# and what can one small GPU do with a model that is four times too large for it. Each is a scenario file; memroof turns
# it into operators, prices them, runs them on an event engine and explains what came out.

# %%
from IPython.display import SVG

import simulator
from simulator.analysis import figures, plots


def show(figure):
    """Show a figure as SVG, which stays sharp and takes the page's text colour."""
    return SVG(figures.svg(figure))


# %% [markdown]
# ## 1. Training: GPT-3 175B on 64 GPUs
#
# Korthikanti et al. measured a step of this configuration. The scenario holds their figure, so the answer says by how
# much it is missed, with constants that know nothing of it.

# %%
training = simulator.run("training/gpt3-175b-64xa100")
published = training.expectations[0]
print(f"{training.headline.label}: {training.headline.text()}, published {published.text}: {published.relative_error:+.1%}")
training.to_frame()

# %% [markdown]
# ### The roofline
#
# A device can do so many FLOP a second and move so many bytes a second; which of the two holds an operator back depends
# on its FLOP per byte. The products of the MLP and of the attention projections stand under the flat part: more peak
# would help them. Softmax and dropout stand under the slope: only bandwidth would.

# %%
show(plots.plot_roofline(training))

# %% [markdown]
# ### Where the time goes
#
# The same operators, summed over the step of the busiest pipeline stage, with what the roofline does not show: exposed
# communication, and the bubble in which a stage has nothing to do.

# %%
show(plots.plot_bottlenecks(training))

# %% [markdown]
# ### The timeline
#
# Interleaved 1F1B: every stage holds several chunks of the model. The white at both ends is the bubble. A closer look in
# the middle shows a stage alternating between forward and backward passes.

# %%
show(plots.plot_timeline(training))

# %%
show(plots.plot_timeline(training, window=plots.close_window(training.timeline)))

# %% [markdown]
# ### The footprint over time
#
# The first stage keeps the activations of the most micro-batches. It fills up during warm-up, stays full while one
# backward pass frees what the next forward pass takes, and empties at the end.

# %%
show(plots.plot_footprint(training))

# %% [markdown]
# ### What if?
#
# Recomputing everything frees memory and costs a forward pass; recomputing nothing does not fit. Selective recomputation
# is why the paper was written.

# %%
recompute = simulator.whatif(
    "training/gpt3-175b-64xa100",
    {"strategy.recompute": ["none", "selective", "full"], "strategy.micro_batch": ["1", "2"]},
)
recompute.to_frame()[["strategy.recompute", "strategy.micro_batch", "fits", "value", "low", "high", "free", "bottleneck"]]

# %%
show(recompute.plot())

# %% [markdown]
# ## 2. Serving: Llama-3.1-70B on one 8-GPU node
#
# Requests arrive at random; a continuous batch takes them in as others leave. Each token of each sequence reads all
# weights and its own cache, so the memory is what binds first.

# %%
serving = simulator.run("serving/llama3.1-70b-8xh100")
show(plots.plot_bottlenecks(serving))

# %%
show(plots.plot_roofline(serving))

# %% [markdown]
# How long does it hold? The time per output token against the rate of requests:

# %%
rates = simulator.whatif(
    "serving/llama3.1-70b-8xh100",
    {"workload.rate": ["1 req/s", "5 req/s", "10 req/s", "20 req/s"]},
    overrides={"workload.requests": "200"},
)
show(rates.plot())

# %% [markdown]
# Does the model fit at all, and how much of it? The same question without a scenario:

# %%
report = simulator.fit("llama3.1-70b", "dgx-h100")
report.fits, report.largest_batch, report.largest_context

# %% [markdown]
# ## 3. Offload: OPT-30B on one 16 GB GPU
#
# The weights are spread over GPU, DRAM and flash and streamed layer by layer. The timeline shows which of the links
# is never idle.

# %%
offload = simulator.run("offload/opt-30b-t4")
print(f"{offload.headline.label}: {offload.headline.text()}, bound by {offload.bottleneck[0]}")
show(plots.plot_timeline(offload))

# %%
show(plots.plot_footprint(offload))

# %% [markdown]
# ### What would change it
#
# Each hardware figure raised by 10 % on its own. What binds the answer moves it; all else does not.

# %%
show(plots.plot_sensitivity(offload))

# %% [markdown]
# ### How sure are we
#
# Every answer carries an 80 % interval: the error of each class of operator is one unknown, the classes are independent.
# The doubt below says which class to measure on a machine of your own first.

# %%
{result.name: {name: round(share, 2) for name, share in result.doubt().items()} for result in (training, serving, offload)}

# %% [markdown]
# The page that goes to those who decide: one HTML file with all of this.

# %%
page = simulator.render_report(training)
len(page)
