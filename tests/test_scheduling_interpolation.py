import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.testing import assert_close

from gdd_diffusers import InterpolationScheduler


RULES = ["origin", "improved"]
PREDICTION_TYPES = ["sample", "flow_prediction"]
SHAPE = (2, 3, 8, 8)


@pytest.fixture
def clean():
    return torch.rand(SHAPE) * 1.6 - 0.8


@pytest.fixture
def noisy(clean):
    return (clean + 0.2 * torch.randn(SHAPE)).clamp(-1, 1)


def output_for(x0_hat, scheduler, t, sample):
    """What a network that guesses `x0_hat` returns."""
    if scheduler.config.prediction_type == "sample":
        return x0_hat
    return (sample - x0_hat) / (t / scheduler.config.num_train_timesteps)


def walk(scheduler, noisy, guess, give_noisy=True):
    """The whole loop; `guess(i, t, sample)` is the network's x0_hat."""
    sample = noisy
    for i, t in enumerate(scheduler.timesteps):
        output = output_for(guess(i, t, sample), scheduler, t, sample)
        sample = scheduler.step(output, t, sample, noisy if give_noisy else None).prev_sample
    return sample


# The process


def test_add_noise_ends_at_both_images(clean, noisy):
    scheduler = InterpolationScheduler()
    assert torch.equal(scheduler.add_noise(clean, noisy, 0), clean)
    assert torch.equal(scheduler.add_noise(clean, noisy, 1000), noisy)


def test_add_noise_is_linear_in_t(clean, noisy):
    scheduler = InterpolationScheduler()
    for t in (0.5, 100.0, 333.3, 999.9):
        assert_close(scheduler.add_noise(clean, noisy, t), clean + t / 1000 * (noisy - clean), atol=1e-6, rtol=0)
    near = scheduler.add_noise(clean, noisy, 500.0) - scheduler.add_noise(clean, noisy, 500.01)
    assert near.abs().max() < 2e-5


def test_add_noise_takes_a_time_for_each_image(clean, noisy):
    scheduler = InterpolationScheduler(num_train_timesteps=10)
    batch = scheduler.add_noise(clean, noisy, torch.tensor([0.0, 2.5]))
    assert torch.equal(batch[0], clean[0])
    assert_close(batch[1], 0.75 * clean[1] + 0.25 * noisy[1])


def test_add_noise_keeps_dtype(clean, noisy):
    batch = InterpolationScheduler().add_noise(clean.half(), noisy.half(), torch.tensor([10, 20]))
    assert batch.dtype == torch.float16


# The rules


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 100, 1000])
@pytest.mark.parametrize("give_noisy", [True, False])
def test_oracle_gives_the_clean_image(clean, noisy, rule, prediction_type, num_steps, give_noisy):
    scheduler = InterpolationScheduler(step_rule=rule, prediction_type=prediction_type)
    scheduler.set_timesteps(num_steps)
    assert_close(walk(scheduler, noisy, lambda i, t, x: clean, give_noisy), clean, atol=1e-6, rtol=0)


def test_origin_restarts_from_the_prediction(clean, noisy):
    scheduler = InterpolationScheduler(step_rule="origin")
    scheduler.set_timesteps(timesteps=[800, 300])
    x_t, x0_hat = torch.rand(SHAPE), clean
    x_s = scheduler.step(x0_hat, 800, x_t, noisy).prev_sample
    assert_close(x_s, 0.7 * x0_hat + 0.3 * noisy)


def test_origin_ends_on_the_last_prediction(noisy):
    scheduler = InterpolationScheduler(step_rule="origin")
    scheduler.set_timesteps(timesteps=[1000, 700, 650, 20])
    guesses = torch.rand(4, *SHAPE)
    assert_close(walk(scheduler, noisy, lambda i, t, x: guesses[i]), guesses[-1])


def test_improved_moves_by_the_difference_of_two_degradations(clean, noisy):
    scheduler = InterpolationScheduler(step_rule="improved")
    scheduler.set_timesteps(timesteps=[800, 300])
    x_t, x0_hat = torch.rand(SHAPE), clean
    x_s = scheduler.step(x0_hat, 800, x_t, noisy).prev_sample
    assert_close(x_s, x_t - (0.2 * x0_hat + 0.8 * noisy) + (0.7 * x0_hat + 0.3 * noisy), atol=1e-6, rtol=0)


@pytest.mark.parametrize("timesteps", [[1000, 500], [1000, 700, 650, 20], [1000, 999, 1]])
def test_improved_ends_on_the_step_weighted_mean_of_all_predictions(noisy, timesteps):
    scheduler = InterpolationScheduler(step_rule="improved")
    scheduler.set_timesteps(timesteps=timesteps)
    guesses = torch.rand(len(timesteps), *SHAPE)
    weights = -torch.tensor([*timesteps, 0.0]).diff() / 1000
    mean = (weights[:, None, None, None, None] * guesses).sum(0)
    assert_close(walk(scheduler, noisy, lambda i, t, x: guesses[i]), mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_without_noisy_sample_both_rules_are_flow_matching(noisy, rule, prediction_type):
    num_steps = 8
    scheduler = InterpolationScheduler(step_rule=rule, prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(num_steps)
    referee = FlowMatchEulerDiscreteScheduler()
    referee.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)])
    sample = expected = noisy
    for t, t_referee in zip(scheduler.timesteps, referee.timesteps, strict=True):
        x0_hat = torch.tanh(0.9 * sample)  # a network that is wrong, and depends on where it is
        output = output_for(x0_hat, scheduler, t, sample)
        velocity = (expected - torch.tanh(0.9 * expected)) / (t / 1000)
        sample = scheduler.step(output, t, sample).prev_sample
        expected = referee.step(velocity, t_referee, expected).prev_sample
        assert_close(sample, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_constant_error_stays_as_it_is(clean, noisy, rule):
    error = 0.1 * torch.rand(SHAPE)
    scheduler = InterpolationScheduler(step_rule=rule)
    scheduler.set_timesteps(9)
    assert_close(walk(scheduler, noisy, lambda i, t, x: clean + error), clean + error, atol=1e-6, rtol=0)


def test_alternating_errors_cancel_only_in_improved(clean, noisy):
    error = 0.1 * torch.rand(SHAPE)
    ends = {}
    for rule in RULES:
        scheduler = InterpolationScheduler(step_rule=rule)
        scheduler.set_timesteps(10)
        ends[rule] = walk(scheduler, noisy, lambda i, t, x: clean + (-1) ** i * error)
    assert_close(ends["improved"], clean, atol=1e-6, rtol=0)
    assert_close(ends["origin"], clean - error, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_one_step_is_regression(clean, noisy, rule, prediction_type):
    scheduler = InterpolationScheduler(step_rule=rule, prediction_type=prediction_type)
    scheduler.set_timesteps(1)
    output = output_for(clean, scheduler, torch.tensor(1000.0), noisy)
    out = scheduler.step(output, scheduler.timesteps[0], noisy, noisy)
    assert_close(out.prev_sample, clean, atol=1e-6, rtol=0)
    assert_close(out.pred_original_sample, clean, atol=1e-6, rtol=0)


def test_both_prediction_types_walk_the_same_way(noisy):
    ends = []
    for prediction_type in PREDICTION_TYPES:
        scheduler = InterpolationScheduler(prediction_type=prediction_type)
        scheduler.set_timesteps(6)
        ends.append(walk(scheduler, noisy, lambda i, t, x: 0.8 * x))
    assert_close(*ends, atol=1e-6, rtol=0)


def test_clip_sample_clips_the_prediction(noisy):
    guess = torch.full(SHAPE, 1.5)
    for clip_sample, end in ((True, 1.0), (False, 1.5)):
        scheduler = InterpolationScheduler(clip_sample=clip_sample)
        scheduler.set_timesteps(3)
        assert_close(walk(scheduler, noisy, lambda i, t, x: guess), torch.full(SHAPE, end))


def test_a_step_can_be_made_in_pieces(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps[:2]:
        whole = scheduler.step(clean, t, noisy, noisy).prev_sample
        pieces = [
            scheduler.step(clean[i : i + 1], t, noisy[i : i + 1], noisy[i : i + 1]).prev_sample for i in range(2)
        ]
        assert torch.equal(torch.cat(pieces), whole)


def test_half_precision_network_leaves_the_image_in_float32(clean, noisy):
    scheduler = InterpolationScheduler(prediction_type="flow_prediction")
    scheduler.set_timesteps(2)
    out = scheduler.step((noisy - clean).bfloat16(), scheduler.timesteps[0], noisy, noisy)
    assert out.prev_sample.dtype == out.pred_original_sample.dtype == torch.float32
    assert_close(out.prev_sample, (clean + noisy) / 2, atol=2e-3, rtol=0)


def test_get_pred_original_sample_takes_a_time_for_each_image_and_has_a_gradient(clean, noisy):
    scheduler = InterpolationScheduler(prediction_type="flow_prediction")
    t = torch.tensor([250.0, 1000.0])
    noise = (noisy - clean).requires_grad_()
    x0_hat = scheduler.get_pred_original_sample(noise, t, scheduler.add_noise(clean, noisy, t))
    assert_close(x0_hat, clean, atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(x0_hat.sum(), noise)
    assert_close(gradient[:, 0, 0, 0], torch.tensor([-0.25, -1.0]))


# The times


def test_timesteps_are_descending_right_after_init():
    scheduler = InterpolationScheduler(num_train_timesteps=100)
    assert scheduler.num_inference_steps is None
    assert scheduler.timesteps[0] == 100 and scheduler.timesteps[-1] == 1
    assert (scheduler.timesteps.diff() == -1).all() and len(scheduler.timesteps) == len(scheduler) == 100


@pytest.mark.parametrize("num_steps", [1, 3, 7, 50, 1000])
def test_timesteps_run_from_T_evenly_to_0(num_steps):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(num_steps)
    expected = torch.tensor([1000 * (1 - i / num_steps) for i in range(num_steps)])
    assert_close(scheduler.timesteps, expected)
    assert scheduler.num_inference_steps == num_steps


def test_custom_timesteps(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(timesteps=[1000, 750.5, 10])
    assert_close(scheduler.timesteps, torch.tensor([1000, 750.5, 10]))
    assert_close(walk(scheduler, noisy, lambda i, t, x: clean), clean, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "exactly one"),
        ({"num_inference_steps": 3, "timesteps": [3, 2]}, "exactly one"),
        ({"num_inference_steps": 0}, "from 1 to 1000"),
        ({"num_inference_steps": 1001}, "from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"timesteps": [100, 200]}, "descending"),
        ({"timesteps": [200, 200]}, "descending"),
        ({"timesteps": []}, "times in"),
        ({"timesteps": [1001, 5]}, "times in"),
        ({"timesteps": [5, 0]}, "times in"),
        ({"num_inference_steps": 3, "strength": 1.1}, "strength"),
        ({"num_inference_steps": 3, "strength": -0.1}, "strength"),
        ({"num_inference_steps": 3, "strength": float("nan")}, "strength"),
    ],
)
def test_set_timesteps_refuses_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        InterpolationScheduler().set_timesteps(**arguments)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.25, 0.6, 0.75, 1.0])
def test_strength_stops_the_walk_on_the_line(clean, noisy, rule, strength):
    scheduler = InterpolationScheduler(step_rule=rule)
    scheduler.set_timesteps(4, strength=strength)
    end = walk(scheduler, noisy, lambda i, t, x: clean)
    assert_close(end, strength * clean + (1 - strength) * noisy, atol=1e-6, rtol=0)
    assert scheduler.num_inference_steps == torch.tensor(strength * 4).ceil()


def test_strengths_that_no_float_is_equal_to():
    """0.6000000000000001 of ten steps are six: the seventh would lead nowhere."""
    scheduler = InterpolationScheduler()
    for N, strength in [(10, 0.1 * k) for k in range(10)] + [(10, 1.0)] + [(3, 1 - 1 / 3), (3, 2 / 3)]:
        scheduler.set_timesteps(N, strength=strength)
        assert len(scheduler.timesteps) == round(N * strength)
        assert (scheduler._nodes.diff() < 0).all()
    with pytest.raises(ValueError, match="strictly descending"):
        scheduler.set_timesteps(timesteps=[900.00000001, 900])


def test_strength_shortens_the_same_walk():
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(4, strength=0.6)
    assert scheduler.timesteps.tolist() == [1000, 750, 500]


def test_step_index_advances(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None and scheduler.begin_index is None
    for i, t in enumerate(scheduler.timesteps):
        scheduler.step(clean, t, noisy, noisy)
        assert scheduler.step_index == i + 1
    scheduler.set_timesteps(5)
    assert scheduler.step_index is None


def test_set_begin_index_anchors_step_index(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == scheduler.step_index == 2
    scheduler.step(clean, scheduler.timesteps[2], noisy, noisy)
    assert scheduler.step_index == 3 and scheduler.begin_index == 2
    scheduler.set_timesteps(5)
    assert scheduler.begin_index is None


@pytest.mark.parametrize("timestep", [0, -5, 1001, float("nan")])
def test_step_rejects_times_off_the_walk(clean, noisy, timestep):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="timestep"):
        scheduler.step(clean, timestep, noisy)


# What diffusers asks of every scheduler


def test_from_save_pretrained(clean, noisy, tmp_path):
    scheduler = InterpolationScheduler(num_train_timesteps=500, step_rule="origin", clip_sample=False)
    scheduler.save_pretrained(tmp_path)
    loaded = InterpolationScheduler.from_pretrained(tmp_path)
    for s in (scheduler, loaded):
        s.set_timesteps(50)
    # 1 is no node of 50 steps: the walk goes on to the next lower node
    results = [s.step(clean, 1, noisy, generator=torch.manual_seed(0)).prev_sample for s in (scheduler, loaded)]
    assert torch.equal(*results)


def test_from_pretrained_keeps_the_configuration(tmp_path):
    values = dict(num_train_timesteps=7, step_rule="origin", prediction_type="flow_prediction", clip_sample=False)
    InterpolationScheduler(**values).save_config(tmp_path)
    loaded = InterpolationScheduler.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in values} == values


def test_from_config_swaps_the_rule():
    scheduler = InterpolationScheduler(num_train_timesteps=250, step_rule="improved")
    swapped = InterpolationScheduler.from_config(scheduler.config, step_rule="origin")
    assert swapped.config.step_rule == "origin" and swapped.config.num_train_timesteps == 250


def test_step_keeps_shapes(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(50)
    outputs = [scheduler.step(clean, scheduler.timesteps[i], noisy).prev_sample for i in (0, 1)]
    assert outputs[0].shape == outputs[1].shape == SHAPE


def test_dict_and_tuple_outputs_are_equal(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(50)
    output = scheduler.step(clean, scheduler.timesteps[3], noisy, noisy)
    as_tuple = scheduler.step(clean, scheduler.timesteps[3], noisy, noisy, return_dict=False)
    assert len(as_tuple) == 2
    assert torch.equal(output.prev_sample, as_tuple[0]) and torch.equal(output.pred_original_sample, as_tuple[1])
    assert torch.equal(output.to_tuple()[0], as_tuple[0])


def test_public_api(noisy):
    scheduler = InterpolationScheduler()
    assert scheduler.order == 1 and scheduler.init_noise_sigma == 1.0 and scheduler.compatibles == []
    assert torch.equal(scheduler.scale_model_input(noisy, 0.0), noisy)


def test_add_noise_at_a_timestep_of_the_walk(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(50)
    assert scheduler.add_noise(clean, noisy, scheduler.timesteps[5][None]).shape == SHAPE


def test_getattr_is_correct():
    scheduler = InterpolationScheduler()
    scheduler.dummy_attribute = 5
    assert scheduler.dummy_attribute == 5
    with pytest.warns(FutureWarning, match="num_train_timesteps"):
        assert scheduler.num_train_timesteps == 1000
    with pytest.raises(AttributeError):
        scheduler.does_not_exist  # noqa: B018


@pytest.mark.parametrize("values", [{"step_rule": "euler"}, {"prediction_type": "epsilon"}])
def test_unknown_configuration_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values.values()))):
        InterpolationScheduler(**values)


def test_full_loop_from_the_middle(clean, noisy):
    scheduler = InterpolationScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    sample = scheduler.add_noise(clean, noisy, scheduler.timesteps[4])
    for t in scheduler.timesteps[4:]:
        sample = scheduler.step(clean, t, sample, noisy).prev_sample
    assert_close(sample, clean, atol=1e-6, rtol=0)
