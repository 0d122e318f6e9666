from __future__ import annotations

import yaml

from deploy.manifests import ROOT


def test_the_alerts_are_rules(promtool):
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    done = promtool("check", "rules", document=rules)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_replicas_follow_is_the_mean_wait_in_milliseconds(promtool):
    """The adapter's query, as the adapter fills it in, gives 0 for a pod without requests and the mean for another."""
    adapter = yaml.safe_load((ROOT / "deploy" / "helm" / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="n"').replace("<<.GroupBy>>", "pod")
    series = [
        # Five requests in 15 s to each of two models, which wait 0.1 s together.
        {"series": f'convlens_queue_seconds_{part}{{namespace="n",pod="{pod}",model="{model}"}}', "values": values}
        for pod, parts in (
            ("busy", (("sum", "0+0.1x20"), ("count", "0+5x20"))),
            ("idle", (("sum", "7+0x20"), ("count", "9+0x20"))),
        )
        for part, values in parts
        for model in ("a", "b")
    ]
    expected = [{"labels": '{pod="busy"}', "value": 20}, {"labels": '{pod="idle"}', "value": 0}]
    test = {"expr": f"round({query}, 0.001)", "eval_time": "2m", "exp_samples": expected}
    document = {"evaluation_interval": "15s", "tests": [{"interval": "15s", "input_series": series}]}
    document["tests"][0]["promql_expr_test"] = [test]
    done = promtool("test", "rules", document=document)
    assert done.returncode == 0, done.stdout + done.stderr
