"""Studies that can be built by name: one file each."""

from collections.abc import Mapping

from shardgen.studies import demo, idr0006, idr0036, idr0093, idr0094
from shardgen.studies.study import Study

STUDIES: Mapping[str, Study] = {
    "demo": demo.STUDY,
    "idr0006": idr0006.STUDY,
    "idr0036": idr0036.STUDY,
    "idr0093": idr0093.STUDY,
    "idr0094A": idr0094.SCREEN_A,
    "idr0094B": idr0094.SCREEN_B,
}
