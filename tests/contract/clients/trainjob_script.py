"""In the environment of Kubeflow's models: read TrainJobs and print what the models keep.

`python trainjob_script.py FILE` with a JSON list of objects prints another such list. The models take what
they know and refuse wrong types, so a key that is missing in the answer is none of theirs.
"""

import json
import sys
from pathlib import Path

from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

left = []
for item in json.loads(Path(sys.argv[1]).read_text()):
    job = TrainerV1alpha1TrainJob.from_dict(item)
    assert job is not None
    left.append(job.to_dict())
print(json.dumps(left))
