"""What settings can change while the exporter runs."""

from exporter.access import AllowList, Tokens, token_texts
from exporter.addresses import Clients
from exporter.intake import Intake
from exporter.rules import Rules
from exporter.settings import Settings
from exporter.shares import FairShare


class Live:
    """The parts that can be changed.

    Attributes:
        fair: the limits of clients and of apps.
        ingest: the tokens of devices.
        metrics: the tokens of who reads metrics.
        releases: the tokens of release pipelines.
    """

    def __init__(self, intake: Intake, fair: FairShare) -> None:
        """Take the parts."""
        self._intake = intake
        self.fair = fair
        self.ingest = Tokens()
        self.metrics = Tokens()
        self.releases = Tokens()

    def apply(self, settings: Settings) -> None:
        """Let settings hold from now on; requests under way end as they began, or by the new ones."""
        self.ingest.replace(token_texts(settings.ingest_token))
        self.metrics.replace(token_texts(settings.metrics_token))
        self.releases.replace(token_texts(settings.releases_token))
        rules = make_rules(settings)
        self._intake.set_rules(rules)
        self.fair.allowed = rules.allowed_apps
        self.fair.clients = Clients(settings.trusted_proxies)
        self.fair.per_client.rate = settings.max_client_events_per_second
        self.fair.per_app.rate = settings.max_app_events_per_second


def make_rules(settings: Settings) -> Rules:
    """Make the rules of which events are counted."""
    return Rules(
        allowed_apps=AllowList(settings.allowed_apps),
        unlisted_apps=settings.unlisted_apps,
        unknown_actions=settings.unknown_actions,
        legacy_download_fail=settings.legacy_download_fail,
        reject_when_full=settings.journal_max_bytes if settings.journal_full == "reject" else None,
    )
