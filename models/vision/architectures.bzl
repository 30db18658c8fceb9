"""The table of official.vision's image classifiers for BUILD files.

A new architecture needs an entry here, a module in this folder, a program in
//exporters and one in //integration_tests.
"""

_BACKBONE = "task.model.backbone."
_DROPOUT = ",task.model.dropout_rate=0.2"

# For each architecture:
#   endpoints: the levels of the backbone.
#   variant: overrides of NAME_small that give the model all hyperparameters.
#   hyperparameters: the hyperparameters that its export then has.
#   excepted_rules: rules of //exporters:check that exports cannot keep.
#   use_test: arguments of `use_image_classifier` (`flags`, `min_accuracy`) that
#     its use_* test needs, as in //integration_tests:use_test.bzl.
#   like: another architecture with mostly the same layers. If there is one,
#     only //:nightly runs NAME_test.
#   nightly: whether only //:nightly trains and fine-tunes the architecture,
#     verifies its export in full and checks the rules. NAME_test exports it.
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
            # With a momentum of 0.5, moving averages of batch normalization are
            # too noisy to compare accuracies.
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
            # On 100 images pretraining improves the accuracy, by 0.08 to 0.23
            # with three seeds. It also makes the model surer of its errors, so
            # the loss may be as high as without pretraining.
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

# The same for classifiers of videos, without `use_test`.
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
