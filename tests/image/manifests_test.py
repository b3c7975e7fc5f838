"""Checks compose.yaml and the Kubernetes manifests against their schemas, and
checks things that no schema knows, such as that attnd has enough time to
drain."""

import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COMPOSE_FILES = [REPOSITORY / 'docker' / 'compose.yaml',
                 REPOSITORY / 'docker' / 'compose.tls.yaml']
KUBERNETES = REPOSITORY / 'deploy' / 'kubernetes'
SERVICE_KINDS = {'Deployment', 'Service', 'PodDisruptionBudget',
                 'HorizontalPodAutoscaler', 'NetworkPolicy'}
# The first version that has everything that is used, and the newest known
# version.
VERSIONS = ['1.29', kubernetes_validate.latest_version()]


def render(folder):
  """Returns the documents as `kubectl apply -k` would send them."""
  text = subprocess.run(['kubectl', 'kustomize', str(KUBERNETES / folder)],
                        capture_output=True, check=True, timeout=60).stdout
  return {d['kind']: d for d in yaml.safe_load_all(text)}


def project_version():
  text = (REPOSITORY / 'CMakeLists.txt').read_text()
  return re.search(r'^project\(attnd VERSION (\S+)', text, re.M).group(1)


def pod_specs():
  """Returns the specs of the pods of all folders, by the name of the folder."""
  return {'service': render('service')['Deployment']['spec']['template']['spec'],
          'service-tls':
              render('service-tls')['Deployment']['spec']['template']['spec'],
          'sidecar': render('sidecar')['Pod']['spec']}


def containers_of(pod):
  return pod.get('initContainers', []) + pod['containers']


def stop_seconds(environment):
  """Returns how long attnd takes to end, at most: the announcement and the
  drain, as the variables or the documented defaults say."""
  text = (REPOSITORY / 'docs/configuration.md').read_text()

  def option(flag):
    row = re.search(rf'^\| `{flag}` \| `(\w+)` .*$', text, re.M)
    default = row.group().split('|')[4]
    return float(environment.get(row.group(1), default))

  return option('--drain-announce') + option('--drain-timeout')


def environment_of(container):
  return {e['name']: e['value'] for e in container['env']}


def seconds(text):
  return int(re.fullmatch(r'(\d+)s', text).group(1))


@pytest.mark.parametrize('file', COMPOSE_FILES, ids=lambda file: file.name)
def test_compose(file):
  """Checks the file with Compose if that is installed, and with its schema
  otherwise."""
  command = ['docker', 'compose', '--file', str(file), 'config', '--quiet']
  try:
    have = subprocess.run(command[:2] + ['version'], check=False,
                          capture_output=True).returncode == 0
  except FileNotFoundError:
    have = False
  if not have:
    command = [sys.executable, '-m', 'check_jsonschema',
               '--builtin-schema=vendor.compose-spec', str(file)]
  print(f'\n{file.name} is checked by {"compose" if have else "its schema"}')
  done = subprocess.run(command, check=False, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_compose_lets_attnd_drain():
  for file in COMPOSE_FILES:
    attnd = yaml.safe_load(file.read_text())['services']['attnd']
    assert seconds(attnd['stop_grace_period']) > stop_seconds(
        attnd['environment']), file


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('folder,kinds', [
    ('sidecar', {'Pod'}),
    ('service', SERVICE_KINDS),
    ('queue-scaling', SERVICE_KINDS),
    ('service-tls', SERVICE_KINDS),
])
def test_manifests(folder, kinds, version):
  documents = render(folder)
  assert set(documents) == kinds
  for document in documents.values():
    kubernetes_validate.validate(document, version, strict=True)


def test_queue_scaling_reads_the_metric_of_the_adapter():
  documents = render('queue-scaling')
  (metric,) = documents['HorizontalPodAutoscaler']['spec']['metrics']
  (rule,) = yaml.safe_load(
      (KUBERNETES / 'queue-scaling' / 'prometheus-adapter-rules.yaml')
      .read_text())['rules']
  assert metric['pods']['metric']['name'] == rule['name']['as']
  (attnd,) = documents['Deployment']['spec']['template']['spec']['containers']
  environment = {e['name']: e['value'] for e in attnd['env']}
  _, port = environment['ATTND_ADMIN_LISTEN'].rsplit(':', 1)
  # Clients reach what they reach without it, and Prometheus one more port.
  clients, scraper = documents['NetworkPolicy']['spec']['ingress']
  (plain,) = render('service')['NetworkPolicy']['spec']['ingress']
  assert clients == plain
  assert [p['port'] for p in scraper['ports']] == [int(port)]
  assert int(port) in [p['containerPort'] for p in attnd['ports']]


def test_a_wrong_manifest_is_found():
  pod = render('sidecar')['Pod']
  pod['spec']['initContainers'][0]['restartpolicy'] = 'Always'
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(pod, VERSIONS[0], strict=True)


def test_every_image_has_the_version_of_the_project():
  """With `latest`, a node would keep an old image."""
  expected = f'attnd:{project_version()}'
  images = [service['image'] for file in COMPOSE_FILES for service in
            yaml.safe_load(file.read_text())['services'].values()]
  for path in KUBERNETES.rglob('*.yaml'):  # also before kustomize changes them
    images += re.findall(r'^\s*image: (.*)$', path.read_text(), re.M)
  for pod in pod_specs().values():
    images += [container['image'] for container in containers_of(pod)]
  assert len(images) == 4 + 3 + 4 and set(images) == {expected}
  for page in ('README.md', 'docs/deployment.md'):
    named = re.findall(r'\battnd:\d+(?:\.\d+)+',
                       (REPOSITORY / page).read_text())
    assert set(named) == {expected}, page


def test_a_container_whose_limits_change_is_started_again():
  """attnd reads its limits only at start, so a change of them restarts it.
  Kubernetes refuses this resizePolicy if the pod's restartPolicy is Never,
  which its schema does not say."""
  for folder, pod in pod_specs().items():
    (attnd,) = [c for c in containers_of(pod) if c['name'] == 'attnd']
    assert {p['resourceName']: p['restartPolicy']
            for p in attnd['resizePolicy']} == {
                'cpu': 'RestartContainer', 'memory': 'RestartContainer'}, folder
    assert pod.get('restartPolicy') != 'Never', folder


def test_the_application_beside_the_sidecar_is_another_user():
  """The application runs as another user, so only the group and the mode of the
  sockets let it in."""
  pod = pod_specs()['sidecar']
  users = {c['name']: c['securityContext']['runAsUser']
           for c in containers_of(pod)}
  assert users['attnd'] != users['application']
  assert 'fsGroup' in pod['securityContext']
  (attnd,) = pod['initContainers']
  environment = environment_of(attnd)
  assert environment['ATTND_SOCKET_MODE'] == '0660'
  # Kubernetes takes only strings here, so numbers have to be in quotes.
  assert all(isinstance(value, str) for value in environment.values())


def test_kubernetes_lets_attnd_drain():
  for folder, pod in pod_specs().items():
    (attnd,) = [c for c in containers_of(pod) if c['name'] == 'attnd']
    assert pod['terminationGracePeriodSeconds'] > stop_seconds(
        environment_of(attnd)), folder


def test_a_pod_of_several_announces_its_end():
  (attnd,) = pod_specs()['service']['containers']
  assert float(environment_of(attnd)['ATTND_DRAIN_ANNOUNCE']) >= 5


def test_the_service_with_tls_is_probed_where_only_kubelet_can_connect():
  """kubelet cannot present a certificate, so it asks the admin port, which no
  other pod can reach."""
  (attnd,) = pod_specs()['service-tls']['containers']
  ports = {port['name']: port['containerPort'] for port in attnd['ports']}
  environment = {e['name']: e['value'] for e in attnd['env']}
  assert environment['ATTND_ADMIN_LISTEN'] == f'0.0.0.0:{ports["admin"]}'
  for name, path in (('startupProbe', '/readyz'), ('readinessProbe', '/readyz'),
                     ('livenessProbe', '/livez')):
    assert 'grpc' not in attnd[name]
    assert attnd[name]['httpGet'] == {'path': path, 'port': 'admin'}
  (rule,) = render('service-tls')['NetworkPolicy']['spec']['ingress']
  assert [port['port'] for port in rule['ports']] == [ports['grpc']]


def test_the_files_of_the_service_with_tls_are_mounted():
  """As whole folders, because Kubernetes updates only those."""
  pod = pod_specs()['service-tls']
  (attnd,) = pod['containers']
  volumes = {v['name']: v for v in pod['volumes']}
  mounts = {m['mountPath']: volumes[m['name']] for m in attnd['volumeMounts']}
  assert not any('subPath' in mount for mount in attnd['volumeMounts'])
  environment = {e['name']: e['value'] for e in attnd['env']}
  for name, secret in (('ATTND_TLS_CERT', 'attnd-tls'),
                       ('ATTND_TLS_KEY', 'attnd-tls'),
                       ('ATTND_TOKEN_FILE', 'attnd-tokens')):
    volume = mounts[str(pathlib.PurePath(environment[name]).parent)]
    assert volume['secret']['secretName'] == secret
    # The user of attnd reads the files through the group.
    assert volume['secret']['defaultMode'] == 0o440
  assert pod['securityContext']['fsGroup'] == 65532


def test_compose_with_tls_passes_each_container_only_its_secrets():
  file = yaml.safe_load(COMPOSE_FILES[1].read_text())
  used = set()
  for service in file['services'].values():
    paths = {pathlib.PurePath(value)
             for value in service['environment'].values()
             if value.startswith('/run/secrets/')}
    assert {path.name for path in paths} == set(service['secrets'])
    used |= set(service['secrets'])
  assert used == set(file['secrets'])
  assert 'server.key' not in file['services']['application']['secrets']
