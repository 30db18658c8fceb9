"""The image classifiers of official.vision: all that BUILD files know of them.

A new architecture is a line here, a module in this folder, a program in
//exporters and one in //integration_tests.
"""

_BACKBONE = "task.model.backbone."
_DROPOUT = ",task.model.dropout_rate=0.2"

# For each architecture:
#   endpoints: the levels of its backbone.
#   variant: overrides of NAME_small that give it all hyperparameters.
#   hyperparameters: these, beside batch_norm_momentum.
#   excepted_rules: rules of //exporters:check that it cannot keep.
#   use_test: what its use_* test needs beyond the defaults, `flags` and
#     `min_accuracy` of `use_image_classifier` in //integration_tests:use_test.bzl.
#   like: an architecture that has most of its layers. Only //:nightly runs
#     NAME_test then.
#   nightly: whether only //:nightly trains and fine-tunes it, verifies it in
#     full and checks the rules. NAME_test exports it.
IMAGE_CLASSIFIERS = {
    "deit": struct(
        endpoints = "4",
        excepted_rules = [],
        hyperparameters = "attention_dropout_rate,dropout_rate,stochastic_depth_rate",
        like = "vit",
        nightly = True,
        use_test = {},
        variant = _BACKBONE + "vit.transformer.attention_dropout_rate=0.1",
    ),
    "efficientnet": struct(
        endpoints = "2,3,4,5,6",
        excepted_rules = [],
        hyperparameters = "batch_norm_momentum,dropout_rate,stochastic_depth_rate",
        like = "resnet",
        nightly = True,
        use_test = {
            # With 0.5 its moving averages are too noisy to compare accuracies.
            "flags": ["--few_images_momentum=0.9"],
        },
        variant = "task.model.dropout_rate=0.2",
    ),
    "mobilenet": struct(
        endpoints = "2,3,4,5,6",
        excepted_rules = [],
        hyperparameters = "batch_norm_momentum,dropout_rate,stochastic_depth_rate",
        like = "resnet",
        nightly = True,
        use_test = {
            # On 100 images it becomes better with pretraining, by 0.08 to 0.23
            # with three seeds, and surer of its errors: the loss may be as high.
            "flags": [
                "--max_loss_ratio=1.2",
                "--min_accuracy_gain=0",
            ],
            "min_accuracy": "0.5",
        },
        variant = _BACKBONE + "mobilenet.stochastic_depth_drop_rate=0.2",
    ),
    "resnet": struct(
        endpoints = "2,3,4,5",
        excepted_rules = [],
        hyperparameters = "batch_norm_momentum,dropout_rate,stochastic_depth_rate",
        like = None,
        nightly = False,
        use_test = {
            "flags": [
                "--hyperparameters=batch_norm_momentum=0.9",
                "--l2_factor=5e-5",
                "--min_differing_averages=1",
                "--num_regularized=21",
                "--num_weights=105",
                "--replicas=2",
                "--segmentation",
            ],
        },
        variant = _BACKBONE + "resnet.stochastic_depth_drop_rate=0.2" + _DROPOUT,
    ),
    "revnet": struct(
        endpoints = "2,3,4",
        excepted_rules = [],
        hyperparameters = "batch_norm_momentum,dropout_rate",
        like = "resnet",
        nightly = True,
        use_test = {},
        variant = "task.model.dropout_rate=0.2",
    ),
    "vit": struct(
        endpoints = "4",
        excepted_rules = [],
        hyperparameters = "attention_dropout_rate,dropout_rate,stochastic_depth_rate",
        like = None,
        nightly = True,
        use_test = {"flags": ["--segmentation"]},
        variant = _BACKBONE + "vit.transformer.attention_dropout_rate=0.1," +
                  _BACKBONE + "vit.init_stochastic_depth_rate=0.1",
    ),
}

# The same of classifiers of videos.
VIDEO_CLASSIFIERS = {
    "resnet_3d": struct(
        endpoints = "2,5",
        excepted_rules = [],
        hyperparameters = "batch_norm_momentum,dropout_rate,stochastic_depth_rate",
        like = "resnet",
        nightly = True,
        variant = _BACKBONE + "resnet_3d.stochastic_depth_drop_rate=0.2",
    ),
}
