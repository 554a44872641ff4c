//! What the words of Cloud Run mean.
//!
//! Here live the types that cannot hold a wrong value (names, quantities, traffic, policies), their defaults and
//! limits, and the pure questions one may ask of them: does this traffic add up, which revision does this draw fall
//! on, is this service ready, does this policy allow. They are one vocabulary for every other crate, and the form in
//! which `store` keeps them.
//!
//! What enters is plain text and numbers, parsed once at the edge; what leaves is a value that holds, or an error
//! that names the rule. No I/O, no clock, no chance, no HTTP: those are arguments or live elsewhere.

mod artifact;
mod audience;
mod bucket;
mod build;
mod causes;
mod condition;
mod container;
mod decision;
mod dependency;
mod health;
mod iam;
mod instance;
mod name;
mod pack;
mod probe;
mod quantity;
mod recipe;
mod record;
mod resource;
mod revision;
mod route;
mod secret;
mod secret_use;
mod service;
mod site;
mod time;
mod traffic;
mod violation;
mod volume;

pub use artifact::{
    ArtifactRepository, CleanupCondition, CleanupPolicy, ImageVersion, MAX_CLEANUP_POLICIES, RepositoryKey, TagState,
    cleaned_up,
};
pub use audience::{Audiences, MAX_CUSTOM_AUDIENCES};
pub use bucket::Bucket;
pub use build::{
    AvailableSecret, Build, BuildId, BuildState, BuildStep, BuiltImage, DEFAULT_BUILD_TIMEOUT, MAX_BUILD_SECRETS,
    MAX_BUILD_STEPS, MAX_BUILD_TIMEOUT, StorageSource, substitute,
};
pub use causes::with_causes;
pub use condition::{Condition, ConditionState, Reason, revision_conditions, service_conditions};
pub use container::{Container, EnvValue, EnvVar, Place, Port, Protocol, RESERVED_ENV, Resources};
pub use decision::{DecisionKind, ScalingDecision};
pub use health::{ProbeKind, Probed};
pub use iam::{
    Access, AccountIdError, AccountKey, Binding, BindingCondition, Given, Group, Groups, INVOKER_ROLE,
    MAX_ACCOUNT_KEYS, MAX_POLICY_MEMBERS, ManagedKey, Member, OWNER_ROLE, Permission, Policy, Predefined, Principal,
    Resource, ResourcePolicy, RevokedToken, Role, ServiceAccount,
};
pub use instance::{
    Activity, ContainerSpec, Exit, ExitCause, Fate, Instance, InstanceId, InstanceSpec, InstanceState, Observed,
    ResolvedVar, Room, Usage, bare_digest,
};
pub use name::{
    BucketName, NameError, ProjectId, ProjectNumber, Region, RepositoryName, RevisionName, SecretName, ServiceName,
    Tag, data_dir_id, url_hash,
};
pub use pack::{MAX_BUILD_VARIABLE, MAX_BUILD_VARIABLES, Pack, PackError, PackStep, VariableError, is_build_variable};
pub use probe::{Check, Header, Probe};
pub use quantity::{Cpu, Memory, QuantityError};
pub use recipe::{MAX_BUILD_SECRET_ID, Recipe, RecipeError, RecipeSecret, inside};
pub use record::{AuditRecord, Entry, LogLine, RequestRecord, Severity, StartRecord, Stream};
pub use revision::{
    Concurrency, CpuAllocation, Kpa, KpaMetric, RequestTimeout, Revision, RevisionKey, RevisionState, RevisionTemplate,
    Sandbox, Scaling, implicit_name, is_service_account, template_violations,
};
pub use route::{Invoker, Route, RouteTable, RouteTarget, Weighted};
pub use secret::{
    MAX_SECRET_ALIASES, MAX_SECRET_ANNOTATION_BYTES, MAX_SECRET_BYTES, MAX_SECRET_LABELS, MAX_SECRET_VERSIONS,
    Replication, SealedValue, Secret, SecretRef, SecretValue, SecretVersion, SecretVersionKey, SecretVersionState,
    Unavailable, VersionRef,
};
pub use secret_use::{Revealed, RevealedFile, RevealedVariable, SecretPlace, SecretUse};
pub use service::{Routed, RoutedTarget, Service, ServiceKey, ServiceScaling, latest_created, latest_ready};
pub use site::{Scheme, Site};
pub use time::Timestamp;
pub use traffic::{Percent, Target, Traffic, TrafficError, TrafficTarget, assign};
pub use violation::Violation;
pub use volume::{SecretItem, Volume, VolumeMount, VolumeSource, is_dns_label};
