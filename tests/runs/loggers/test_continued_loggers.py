import pytest
from jsonargparse import Namespace

from vidlit.runs.directory import RunDirectory
from vidlit.runs.loggers.continued_loggers import continued


def loggers():
    wandb = Namespace(name=None, id=None, project="p")
    return [
        Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=wandb, dict_kwargs={"settings": {}}),
        Namespace(class_path="lightning.pytorch.loggers.MLFlowLogger", init_args=Namespace(run_name=None, run_id=None)),
    ]


@pytest.mark.parametrize(
    ("path", "name", "group"),
    [
        ("mine/0", "mine/0", None),
        ("mine/0/refit", "mine/0/refit", "mine/0"),
        ("mine/kfold_3/fold_1", "mine/kfold_3/fold_1", "mine/kfold_3"),
    ],
)
def test_runs_have_names_and_what_belongs_together_a_group(tmp_path, path, name, group):
    directory = RunDirectory(tmp_path / path)
    directory.path.mkdir(parents=True)
    wandb, mlflow = given = loggers()
    with continued(given, directory):
        assert wandb.init_args.name == mlflow.init_args.run_name == name
        assert wandb.dict_kwargs == {"settings": {}, **({"group": group} if group else {})}
        first = wandb.init_args.id
        assert len(first) == 8
    # the config is as it was: a run that is begun with its copy is another run
    assert [str(each) for each in given] == [str(each) for each in loggers()]
    with continued(given, directory):
        assert wandb.init_args.id == first


def test_names_of_the_users_own_stay(tmp_path):
    given = Namespace(class_path="WandbLogger", init_args=Namespace(name="mine", id="abc"), dict_kwargs={"group": "g"})
    directory = RunDirectory(tmp_path / "r" / "0" / "refit")
    directory.path.mkdir(parents=True)
    with continued(given, directory):
        assert (given.init_args.name, given.init_args.id, given.dict_kwargs) == ("mine", "abc", {"group": "g"})
