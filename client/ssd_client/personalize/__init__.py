"""A folder of documents becomes an expert: ingest, learn, weigh, export, index, register.

The only part of the device that needs torch; import it lazily.
"""

from ssd_client.personalize.options import Event, OnEvent, PersonalizeOptions
from ssd_client.personalize.run import Watch, personalize

__all__ = ["Event", "OnEvent", "PersonalizeOptions", "Watch", "personalize"]
