"""Trackers: other tools that keep the curves and settings of runs."""

from accelnet.tracking.csv_file import CsvTracker as CsvTracker
from accelnet.tracking.mlflow import MLflowTracker as MLflowTracker
from accelnet.tracking.tracker import Tracker as Tracker
from accelnet.tracking.tracker import Tracking as Tracking
from accelnet.tracking.trackio import TrackioTracker as TrackioTracker
from accelnet.tracking.wandb import WandBTracker as WandBTracker
